"""Batches that are held back, to choose on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# One batch in so many is held back.
_HELD_BACK = 8


def split_batches(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Split batches into those that are fitted to and those held back: one in eight, none of a single one."""
    count = max(1, len(batches) // _HELD_BACK) if len(batches) > 1 else 0
    return list(batches[: len(batches) - count]), list(batches[len(batches) - count :])
