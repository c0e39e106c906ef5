"""Memory that one call needs at its peak, as the operating system counts it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_memory(call: Callable[[], Any]) -> float | None:
    """Return how far one call raises this process's resident memory at its peak.

    Memory that was freed before and stayed with the process is not seen, so the first call of a model tells most.

    Args:
        call: Run once.

    Returns:
        MiB, at least 0; None where the system does not offer the counters (they are Linux's), and nothing is run.
    """
    gc.collect()
    try:
        _RESET.write_text(_RESET_PEAK)
        before = _status("VmRSS")
    except OSError:
        return None
    if before is None:
        return None
    call()
    peak = _status("VmHWM")
    return None if peak is None else max(0.0, peak - before)


def _status(name: str) -> float | None:
    """Return a line of the process's status in MiB."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return None
