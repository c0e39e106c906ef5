"""JSON from anyone, read within bounds of size, depth and number, and without what JSON does not define."""

from __future__ import annotations

import json
import math
from itertools import accumulate
from typing import Any

# The largest manifests of known models have about 2 MB, 100,000 values and 12 levels.
MOST_BYTES = 64 * 2**20
MOST_VALUES = 2_000_000
MOST_LEVELS = 64
_MOST_DIGITS = 19  # about what 64 bits hold


def parse(data: bytes) -> Any:
    """Read JSON.

    Args:
        data: UTF-8.

    Returns:
        Dicts, lists, strings, finite floats, integers of 64 bits, bools and None.

    Raises:
        ValueError: It is no JSON, exceeds a bound, names a key twice, or holds NaN or infinity.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes, at most {MOST_BYTES} are read")
    # Counted before anything is built: 64 MiB of brackets would become gigabytes of lists.
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > MOST_VALUES or data.count(b'"') > 4 * MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values")
    if _levels(data) > MOST_LEVELS:
        raise ValueError(f"more than {MOST_LEVELS} levels")
    return json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_table,
        parse_constant=_refused,
        parse_float=_finite,
        parse_int=_whole,
    )


def _levels(data: bytes) -> int:
    """Return how deep brackets are nested, those in strings not counted: the parser itself would recurse."""
    without_escapes = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(without_escapes.split(b'"')[::2])
    steps = (1 if byte in b"[{" else -1 for byte in brackets if byte in b"[]{}")
    return max(accumulate(steps, initial=0))


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands there twice")
    return table


def _refused(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"the integer {text[:40]}... is too large")
    return int(text)
