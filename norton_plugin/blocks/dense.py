"""The convolution that a block equals, with a weight of choice."""

from __future__ import annotations

from torch import Tensor, nn

from norton_plugin.blocks.conv_block import ConvBlock
from norton_plugin.blocks.padding import pad, sides


def convolve(block: ConvBlock, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with a dense weight and the geometry of a block: (B, C, H, W) to (B, N, Ho, Wo)."""
    margins = sides(
        block.padding,
        size=(int(x.shape[-2]), int(x.shape[-1])),
        kernel_size=block.kernel_size,
        stride=block.stride,
        dilation=block.dilation,
    )
    x = pad(x, margins, block.padding_mode)
    return nn.functional.conv2d(x, weight, bias, block.stride, 0, block.dilation, block.groups)
