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
        batch: A tensor (B, ...), a structure of such tensors, or a list of images (C, H, W); anything else stays whole.
    """
    count = batch_size(batch)
    leaves = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    step = max(1, _NUMBERS * count // max(1, sum(leaf.numel() for leaf in leaves)))
    if step >= count:
        return [batch]
    ranges = [slice(start, start + step) for start in range(0, count, step)]
    if isinstance(batch, list | tuple) and len(batch) == count and all(leaf.dim() == 3 for leaf in leaves):
        return [batch[part] for part in ranges]  # single images
    if any(leaf.dim() == 0 or len(leaf) != count for leaf in leaves):
        return [batch]
    return [
        tree_map(lambda leaf, part=part: leaf[part] if isinstance(leaf, Tensor) else leaf, batch) for part in ranges
    ]
