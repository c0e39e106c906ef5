"""The convolution that a block equals, with a weight of choice."""

from __future__ import annotations

from torch import Tensor

from norton_plugin.blocks.conv_block import ConvBlock
from norton_plugin.blocks.convolutions import FUNCTIONS
from norton_plugin.blocks.padding import pad, sides


def convolve(block: ConvBlock, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with a dense weight and the geometry of a block: (B, C, H, W) to (B, N, Ho, Wo)."""
    axes = len(block.kernel_size)
    margins = sides(
        block.padding,
        size=tuple(int(length) for length in x.shape[-axes:]),
        kernel_size=block.kernel_size,
        stride=block.stride,
        dilation=block.dilation,
    )
    x = pad(x, margins, block.padding_mode)
    return FUNCTIONS[axes](x, weight, bias, block.stride, 0, block.dilation, block.groups)
