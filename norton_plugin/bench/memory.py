"""Memory that one call needs at its peak, as the operating system counts it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from norton_plugin.modules.system_memory import give_back_freed

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def first_call_peak(call: Callable[[], Any]) -> float | None:
    """Return how far one call raises this process's resident memory at its peak.

    Memory that a runtime keeps from one call to the next is seen at the first call alone.

    Args:
        call: Run once.

    Returns:
        MiB, at least 0; None where the system does not offer the counters (they are Linux's).
    """
    gc.collect()
    give_back_freed()  # which the call would use again unseen
    try:
        _RESET.write_text(_RESET_PEAK)
        before = _status("VmRSS")
    except OSError:
        before = None
    call()
    peak = None if before is None else _status("VmHWM")
    return None if before is None or peak is None else max(0.0, peak - before)


def _status(name: str) -> float | None:
    """Return a line of the process's status in MiB."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return None
