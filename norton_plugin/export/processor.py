"""The processor: its name, and its instructions for products of bytes, on which the speed of int8 hangs."""

from __future__ import annotations

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# The fastest first; the names are those of Linux.
_KNOWN = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "asimddp": "Arm dot product"}


def processor_name(path: Path = _CPUINFO) -> str:
    """Return the name of the processor, or of its architecture where the system does not tell.

    Args:
        path: As Linux writes it.
    """
    try:
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def int8_instructions(path: Path = _CPUINFO) -> str:
    """Return ``AMX``, ``AVX-512 VNNI``, ``AVX VNNI`` or ``Arm dot product``, else ``none``.

    Args:
        path: As Linux writes it; ``unknown`` where there is none.
    """
    try:
        words = set(path.read_text().split())
    except OSError:
        return "unknown"
    return next((name for flag, name in _KNOWN.items() if flag in words), "none")
