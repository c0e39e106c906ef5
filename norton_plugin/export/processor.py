"""Which instructions for products of bytes the processor has: the speed of int8 hangs on them."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# The fastest first; the names are those of Linux.
_KNOWN = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "asimddp": "Arm dot product"}


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
