"""Images mirrored and shifted at random, so that a model cannot learn a few hundred of them by heart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_map

# Largest shift, as a share of a side: 4 pixels of 32, as in the usual training on CIFAR-10.
_SHIFT = 1 / 8
_SMALLEST_SIDE = 16


class Augmentation:
    """Random mirror images (each image by itself) and shifts (the whole batch), the same for all images of a batch.

    Without labels nothing else has to change with them: the dense model sees the same images. Shifts leave zeros
    behind, as padded convolutions do. What is no floating tensor (B, C, H, W) of at least 16 x 16 passes unchanged.

    Args:
        seed: Equal seeds give equal mirror images and shifts.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: Any) -> Any:
        """Return a batch of the same structure and shapes: a tensor, or tensors in lists, tuples and dicts."""
        seed = int(torch.randint(2**31, (), generator=self._generator))
        return tree_map(lambda leaf: _moved(leaf, seed) if _is_images(leaf) else leaf, batch)


def _is_images(leaf: Any) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.dim() == 4
        and leaf.is_floating_point()
        and min(leaf.shape[2:]) >= _SMALLEST_SIDE
    )


def _moved(images: Tensor, seed: int) -> Tensor:
    """Mirror some of the images, and shift all."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(2, generator=generator).tolist()
    down, right = (_pixels(share, size) for share, size in zip(shares, images.shape[2:], strict=True))
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device) < 0.5
    return pad(torch.where(mirrored, images.flip(3), images), (right, -right, down, -down))


def _pixels(share: float, size: int) -> int:
    """Return a shift of at most one in eight pixels of a side, for a share of all possible ones in [0, 1)."""
    most = int(size * _SHIFT)
    return int(share * (2 * most + 1)) - most
