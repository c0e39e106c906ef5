"""Regions that heads of two-stage detectors are run on in the place of those that a detector proposes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Regions of each image by which two models are compared. It is odd: a trace takes a number of regions that equals a
# width, mostly an even number, for that width.
COMPARED_REGIONS = 33
# Regions of a level have the side where it begins, times this factor, so that they lie inside it.
_WITHIN_LEVEL = 1.2


def regions_of_levels(count: int, size: tuple[int, int], begins: Sequence[float], *, like: Tensor) -> Tensor:
    """Return boxes that begin in an image, every level of a pyramid in turn read by one, the same every time.

    Args:
        count: Of boxes.
        size: (H, W) of the image in pixels.
        begins: Side of a box in pixels from which on each level is read.
        like: Of the device and type of the boxes.

    Returns:
        (count, 4): x1, y1, x2, y2 in pixels.
    """
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]]) / 2
    sides = _WITHIN_LEVEL * torch.tensor(begins, dtype=torch.float32)[torch.arange(count) % len(begins)]
    return torch.cat([corners, corners + sides[:, None]], 1).to(device=like.device, dtype=like.dtype)
