"""Memory as the operating system counts it: what is available, and what is given back to it."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_MEMINFO, _GROUP, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Limit, use, and the pages of files that are counted in it and can be had back, by the version of cgroups.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
_DONT_NEED = 4  # of madvise


def available_bytes() -> int | None:
    """Return the bytes that can be had without swapping, within the limits of a container or job.

    Returns:
        None where nothing tells, as outside Linux.
    """
    found = [_of_machine(), *(_of_group(*group) for group in _groups())]
    return min((size for size in found if size is not None), default=None)


def give_back_freed() -> None:
    """Let the C library return memory that was freed, which it keeps for the next use."""
    if platform.libc_ver()[0] == "glibc":
        _library().malloc_trim(0)


def leave_pages(address: int, size: int) -> None:
    """Let go of the pages of a mapped, shared file; they are read again where they are touched.

    Args:
        address: Where the map begins.
        size: Its bytes.
    """
    if platform.system() == "Linux":
        _library().madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_int(_DONT_NEED))


@cache
def _library() -> Any:
    return ctypes.CDLL(None)


def _of_machine() -> int | None:
    kib = _number(_MEMINFO, "MemAvailable:")
    return None if kib is None else kib * 1024


def _groups() -> Iterator[tuple[Path, int]]:
    """Yield the folders of this process's control groups and of those around them, each with its version."""
    roots = {(_GROUPS, 2): "/", (_GROUPS / "memory", 1): "/"}
    try:
        lines = _GROUP.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots[_GROUPS, 2] = path
        elif "memory" in controllers.split(","):
            roots[_GROUPS / "memory", 1] = path
    for (root, version), path in roots.items():
        inner = root / path.strip("/")
        yield from ((folder, version) for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _of_group(folder: Path, version: int) -> int | None:
    limit, use, files = _FILES[version]
    most, used = _number(folder / limit), _number(folder / use)
    if most is None or used is None:
        return None
    return max(0, most - used + (_number(folder / "memory.stat", files) or 0))


def _number(path: Path, name: str | None = None) -> int | None:
    """Return the number in a file, or behind a name at the start of a line; None where there is none."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    words = [line[0] if name is None else line[1] for line in lines if line and name in (None, line[0])]
    return int(words[0]) if words and words[0].isdigit() else None
