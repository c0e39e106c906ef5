"""Memory as the operating system counts it: what is available, and what is given back to it."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# The limit and the use of the group of processes, as a container sees them, by the version of cgroups; of what is used,
# pages of files can be had back.
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        "total_inactive_file",
    ),
)
_DONT_NEED = 4  # of madvise


def available_bytes() -> int | None:
    """Return the bytes that can be had without swapping, limits of a container included; None where nothing tells."""
    found = [_of_machine(), *(_of_group(*group) for group in _GROUPS)]
    return min((size for size in found if size is not None), default=None)


def give_back_freed() -> None:
    """Let the C library return memory that was freed, which it keeps for the next use."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def leave_pages(address: int, size: int) -> None:
    """Let go of the pages of a mapped, shared file; they are read again where they are touched.

    Args:
        address: Where the map begins.
        size: Its bytes.
    """
    if platform.system() == "Linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(_DONT_NEED))


def _of_machine() -> int | None:
    kib = _number(_MEMINFO, "MemAvailable:")
    return None if kib is None else kib * 1024


def _of_group(limit: Path, use: Path, files: str) -> int | None:
    most, used = _number(limit), _number(use)
    if most is None or used is None:
        return None
    return max(0, most - used + (_number(use.with_name("memory.stat"), files) or 0))


def _number(path: Path, name: str | None = None) -> int | None:
    """Return the number in a file, or behind a name at the start of a line; None where there is none."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    words = [line[0] if name is None else line[1] for line in lines if line and name in (None, line[0])]
    return int(words[0]) if words and words[0].isdigit() else None
