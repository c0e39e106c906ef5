"""Timing all candidates in turn, in one run, at one batch size and number of threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from norton_plugin.bench.candidates import (
    COMPRESSED,
    DELIVERED,
    DENSE,
    FOLDED,
    IN_PYTORCH,
    INT8,
    PYTORCH,
    Call,
    Candidate,
    OpenedCandidate,
)
from norton_plugin.bench.report import Setting, Timing
from norton_plugin.deploy.latency import interleaved
from norton_plugin.errors import RecipeError
from norton_plugin.modules.running import repeated
from norton_plugin.modules.threads import torch_threads

_COMPRESSED = (COMPRESSED, DELIVERED, INT8)


def of_batch(inputs: Any, batch: int) -> Any:
    """Return an example with a number of images: the first one again and again.

    Raises:
        RecipeError: There is no tensor with a batch axis in it.
    """
    if not any(isinstance(leaf, Tensor) and leaf.dim() for leaf in tree_leaves(inputs)):
        raise RecipeError("the example holds no tensor with a batch axis; give one, or leave out the batch size")

    def first(leaf: Any) -> Any:
        return leaf[:1] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return repeated(tree_map(first, inputs), batch)


def samples_of(
    calls: Mapping[Any, Call], *, rounds: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> dict[Any, list[float]]:
    """Time calls in turn, so that whatever else the machine does hurts all alike.

    Args:
        calls: What to time.
        rounds: Timed calls of each.
        seconds: No further round begins after so many; three are made in any case, if asked for.
        clock: Gives seconds.

    Returns:
        The seconds of every call.
    """
    with torch.inference_mode():
        found = interleaved(list(calls.values()), rounds=rounds, warmup=1, budget=seconds, clock=clock)
    return dict(zip(calls, found, strict=True))


def setting_of(
    opened: Mapping[Candidate, OpenedCandidate],
    *,
    batch: int,
    threads: int,
    macs_ratio: float,
    file_macs_ratio: float,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Setting:
    """Time all candidates at one setting.

    Args:
        opened: Candidates, the dense model in PyTorch among them.
        batch: Images of a call.
        threads: Of the processor.
        macs_ratio: MACs of the dense model over those of the compressed one.
        file_macs_ratio: The same of what files of other runtimes hold of them.
        rounds: See `samples_of`.
        seconds: See `samples_of`.
        clock: See `samples_of`.
    """
    with torch_threads(threads), torch.inference_mode():
        calls = {candidate: each.call for candidate, each in opened.items()}
        samples = samples_of(calls, rounds=rounds, seconds=seconds, clock=clock)
    medians = {candidate: statistics.median(own) for candidate, own in samples.items()}
    loaded = next(t for c, t in medians.items() if c.model == DENSE and c.runtime == PYTORCH)
    timings = []
    for candidate, own in samples.items():
        reference = _reference(candidate, medians, loaded)
        low, middle, high = _quartiles(own)
        speed_up = reference / medians[candidate]
        ratio = macs_ratio if candidate.runtime in IN_PYTORCH else file_macs_ratio
        timings.append(
            Timing(
                model=candidate.model,
                runtime=candidate.runtime,
                milliseconds=1e3 * middle,
                low=1e3 * low,
                high=1e3 * high,
                speed_up=speed_up,
                speed_up_in_all=loaded / medians[candidate],
                efficiency=speed_up / ratio if candidate.model in _COMPRESSED else None,
                peak_mib=opened[candidate].peak_mib,
            )
        )
    return Setting(batch, threads, len(next(iter(samples.values()))), tuple(timings))


def _reference(candidate: Candidate, medians: Mapping[Candidate, float], loaded: float) -> float:
    """Return the dense model's best time in the same runtime; PyTorch's two memory formats are one runtime."""
    same = candidate.runtime.partition(",")[0]
    dense = [t for c, t in medians.items() if c.model in (DENSE, FOLDED) and c.runtime.partition(",")[0] == same]
    return min(dense, default=loaded)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
