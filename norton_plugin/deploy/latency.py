"""Latency of several callables as ratios: measured interleaved in one run, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from norton_plugin.errors import RecipeError


@dataclass(frozen=True)
class LatencyRatio:
    """Medians of one interleaved measurement.

    Attributes:
        seconds: Median seconds per call, in the order of the callables.
        ratios: The first callable's median over each one's: above 1 is faster than the first.
        rounds: Calls of each.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    rounds: int


def compare_latency(
    calls: Sequence[Callable[[], Any]],
    *,
    rounds: int = 15,
    warmup: int = 2,
    budget: float = 30.0,
    clock: Callable[[], float] | None = None,
) -> LatencyRatio:
    """Time callables in turn, so that a busy machine hurts all alike.

    Args:
        calls: Two or more; the first is the reference.
        rounds: Calls of each that count.
        warmup: Calls of each before.
        budget: Seconds after which no further round begins (three are run in any case, if asked for).
        clock: Gives seconds; ``time.perf_counter`` by default. ``time.process_time`` leaves out the time that other
            programs took: the fairer one on a busy machine, with one thread.

    Raises:
        RecipeError: Fewer than two calls, no round, or a negative warm-up.
    """
    if len(calls) < 2 or rounds < 1 or warmup < 0:
        raise RecipeError(
            f"{len(calls)} calls, {rounds} rounds, {warmup} to warm up; expected at least 2 calls, 1 round and 0"
        )

    samples = interleaved(calls, rounds=rounds, warmup=warmup, budget=budget, clock=clock or time.perf_counter)
    medians = tuple(statistics.median(own) for own in samples)
    return LatencyRatio(medians, tuple(medians[0] / m for m in medians), len(samples[0]))


def interleaved(
    calls: Sequence[Callable[[], Any]], *, rounds: int, warmup: int, budget: float, clock: Callable[[], float]
) -> list[list[float]]:
    """Return the seconds of every call, each timed in turn; arguments as of `compare_latency`."""

    def timed(call: Callable[[], Any]) -> float:
        _synchronise()
        start = clock()
        call()
        _synchronise()
        return clock() - start

    for _ in range(warmup):
        for call in calls:
            call()
    samples: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    while len(samples[0]) < rounds and (len(samples[0]) < 3 or time.perf_counter() - begin < budget):
        for call, own in zip(calls, samples, strict=True):
            own.append(timed(call))
    return samples


def _synchronise() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
