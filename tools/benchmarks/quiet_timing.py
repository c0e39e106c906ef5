"""Latency on a machine that others use too: processor time, steady memory, ratios of several runs."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from norton_plugin.deploy import compare_latency

METHOD = (
    "One thread, processor time, medians of interleaved calls, each after a call of its own kind that does not count, "
    "so that none pays for what its neighbour left in the caches. A first run finds the fastest form and memory format "
    "of every candidate, the dense layer too; figures are medians over the runs that follow. Freed memory stays with "
    "the process, as with onnxruntime's or a server's allocator."
)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def prepare() -> None:
    """Run on one thread, and let the C library keep freed memory: page faults would hide what is measured."""
    torch.set_num_threads(1)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_M_TOP_PAD, 2**26)
        libc.mallopt(_M_MMAP_MAX, 0)


def seconds(calls: Mapping[Any, Callable[[], Any]], *, rounds: int, budget: float, times: int = 2) -> dict[Any, float]:
    """Return the median processor seconds of every call, measured in turns, the last of ``times`` in a row."""
    rows = [call for call in calls.values() for _ in range(times)]
    with torch.inference_mode():
        found = compare_latency(rows, rounds=rounds, warmup=1, budget=budget, clock=time.process_time)
    return dict(zip(calls, found.seconds[times - 1 :: times], strict=True))


def fastest(
    candidates: Mapping[Any, Mapping[Any, Callable[[], Any]]], *, rounds: int = 5, budget: float = 10.0
) -> dict[Any, Any]:
    """Return for every candidate which of its variants is the fastest."""
    flat = {(name, variant): call for name, variants in candidates.items() for variant, call in variants.items()}
    found = seconds(flat, rounds=rounds, budget=budget, times=1)
    return {name: min(variants, key=lambda v, n=name: found[n, v]) for name, variants in candidates.items()}


def repeated(
    calls: Mapping[Any, Callable[[], Any]], *, runs: int = 3, rounds: int = 15, budget: float = 6.0
) -> list[dict[Any, float]]:
    """Return the medians of several interleaved runs."""
    return [seconds(calls, rounds=rounds, budget=budget) for _ in range(runs)]


def middle(values: list[float]) -> float:
    """Return the median, to four digits."""
    return float(f"{statistics.median(values):.4g}")
