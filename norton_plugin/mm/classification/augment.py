"""Random crops and flips of a whole batch at once."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(
    images: Tensor, *, padding: int = 4, flip: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Cut a random window of the original size out of each zero-padded image and mirror half of them.

    The usual augmentation of CIFAR (He et al., "Deep Residual Learning for Image Recognition", section 4.2).

    Args:
        images: (B, C, H, W), any dtype.
        padding: Zero pixels added on each side, at least 0.
        flip: Mirror each image left to right with probability 1/2.
        generator: Source of randomness on the CPU; torch's global one when ``None``.

    Returns:
        (B, C, H, W), same dtype and device.
    """
    batch, channels, height, width = images.shape
    device = images.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator).to(device)

    rows = draw(2 * padding + 1) + torch.arange(height, device=device)
    columns = draw(2 * padding + 1) + torch.arange(width, device=device)
    if flip:
        columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4) if padding else images
    index = torch.arange(batch, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[index, channel, rows[:, None, :, None], columns[:, None, None, :]]
