"""Batches of images: how many images one holds, which are held back to choose on, and parts that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

# One batch in so many is held back.
_HELD_BACK = 8
# Numbers in the images of a part: eight of 224 x 224, of which a ResNet-50 holds about 2 GB with its gradients.
_NUMBERS = 8 * 3 * 224 * 224


def batch_size(batch: Any) -> int:
    """Return the number of images in a batch.

    Args:
        batch: A tensor (B, ...), a list of images (C, H, W), a tuple of positional arguments, or a dict: of the latter
            two the first that holds a tensor counts.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else 1
    if isinstance(batch, list) and batch:
        first = batch[0]
        return batch_size(first) if isinstance(first, Tensor) and first.dim() != 3 else len(batch)
    if isinstance(batch, tuple | dict):
        values = batch.values() if isinstance(batch, dict) else batch
        return next((batch_size(value) for value in values if _holds_tensor(value)), 1)
    return 1


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


def parts_of(batch: Any) -> list[Any]:
    """Return a batch in parts of at most 1.2 million numbers, of one image at least.

    Args:
        batch: A tensor (B, ...), alone or as the only leaf of tuples and dicts, or a list of images (C, H, W). Anything
            else stays whole: what belongs to which image is not known.
    """
    count, leaves = batch_size(batch), tree_leaves(batch)
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        return [batch]
    step = max(1, _NUMBERS * count // max(1, sum(leaf.numel() for leaf in leaves)))
    if step >= count:
        return [batch]
    ranges = [slice(start, start + step) for start in range(0, count, step)]
    if len(leaves) == 1 and len(leaves[0]) == count:
        return [tree_map(lambda leaf, part=part: leaf[part], batch) for part in ranges]
    if isinstance(batch, list | tuple) and len(batch) == count and all(leaf.dim() == 3 for leaf in leaves):
        return [batch[part] for part in ranges]  # single images
    return [batch]


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
