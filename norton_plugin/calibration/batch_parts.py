"""Batches cut into parts of few images, where a pass with gradients would hold too much."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from norton_plugin.calibration.batch_norm import batch_size

# Numbers in the images of a part: eight of 224 x 224, of which a ResNet-50 holds about 2 GB with its gradients.
_NUMBERS = 8 * 3 * 224 * 224


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
