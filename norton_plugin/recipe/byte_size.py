"""Amounts of memory as people write them."""

from __future__ import annotations

import math
import re

from norton_plugin.errors import RecipeError

_UNITS = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("k" if base == 1000 else "K", "M", "G", "T"), 1)
}
_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def bytes_of(name: str, value: object) -> int:
    """Read an amount of memory.

    Args:
        name: Of the setting, for messages.
        value: ``"4GiB"``, ``"500 MB"``, or a number of bytes.

    Raises:
        RecipeError: It is no amount above 0.
    """
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    found = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
    unit = None if found is None else {known.lower(): size for known, size in _UNITS.items()}.get(found[2].lower())
    if found is None or unit is None or not float(found[1]) > 0:
        raise RecipeError(
            f"{name} is {value!r}; expected an amount of memory, such as 4GiB, 500MB or a number of bytes"
        )
    return math.ceil(float(found[1]) * unit)


def in_words(size: float) -> str:
    """Return an amount of memory that is no less than a number of bytes, such as ``1.5 GiB``."""
    for unit in ("GiB", "MiB", "KiB"):
        if size >= _UNITS[unit]:
            return f"{math.ceil(size / _UNITS[unit] * 10) / 10:g} {unit}"
    return f"{math.ceil(size)} B"
