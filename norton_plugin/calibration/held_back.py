"""Batches that are held back, to choose on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from norton_plugin.calibration.batch_norm import batch_size

# One batch in so many is held back.
_HELD_BACK = 8


def split_batches(batches: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Split batches into those that are fitted to and those held back: one in eight, none of a single one.

    The last ones are held back, or the smallest one where those hold more than half of the images.
    """
    if len(batches) < 2:
        return list(batches), []
    count = max(1, len(batches) // _HELD_BACK)
    sizes = [batch_size(batch) for batch in batches]
    held = set(range(len(batches) - count, len(batches)))
    if 2 * sum(sizes[i] for i in held) > sum(sizes):
        held = {min(range(len(batches)), key=sizes.__getitem__)}
    return [b for i, b in enumerate(batches) if i not in held], [b for i, b in enumerate(batches) if i in held]
