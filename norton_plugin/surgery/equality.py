"""Whether a block computes what the layer it replaces would compute with the rebuilt weight."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.blocks.dense import convolve
from norton_plugin.modules.running import TOLERANCE, relative_error, traceable

# Maps are cut down to about this many pixels a side, which bounds the cost; the borders then have more weight.
_SIDE = 16


def replacement_error(
    conv: nn.Module, block: ConvBlock | CPDLinear, weight: Tensor, *, map_size: tuple[int, ...] | None = None
) -> float:
    """Compare a block with the convolution itself, on random numbers.

    A convolution is linear in its weight: with W^ in place of W it returns conv(x) + (W^ - W) * x. So the block is
    held against the module that it replaces, whatever that one does with its weight and its padding.

    Args:
        conv: The module to be replaced.
        block: Its replacement.
        weight: W as read from the module, (N, C, Kh, Kw), of a Linear layer (N, C, 1, 1).
        map_size: (H, W) of the layer's input; large ones are cut down.

    Returns:
        Largest difference, relative to the largest expected value; infinity where shapes differ.
    """
    size = _cut_down(block, map_size) if isinstance(block, ConvBlock) else ()
    weight = weight.view_as(block.weight)
    if weight.dtype == torch.float32:
        error = _compared(conv, block, weight, size)
        if error <= TOLERANCE / 10 or error == float("inf"):
            return error
    # Half precision, or a W^ that is far smaller than W: it is the computation that is compared, not its rounding.
    return _compared(copy.deepcopy(conv).double(), copy.deepcopy(block).double(), weight.double(), size)


def _compared(conv: nn.Module, block: ConvBlock | CPDLinear, weight: Tensor, size: tuple[int, ...]) -> float:
    width = block.in_channels if isinstance(block, ConvBlock) else block.in_features
    x = torch.randn(1, width, *size, generator=torch.Generator().manual_seed(0)).to(weight)
    with traceable(block):
        difference = block.weight - weight
        change = convolve(block, x, difference, None) if isinstance(block, ConvBlock) else F.linear(x, difference)
        dense = conv(x)
        return float("inf") if dense.shape != change.shape else relative_error([block(x)], [dense + change])


def _cut_down(block: ConvBlock, map_size: tuple[int, ...] | None) -> tuple[int, ...]:
    sides_ = []
    for axis in range(len(block.kernel_size)):
        least = max(_SIDE, 2 * (block.dilation[axis] * (block.kernel_size[axis] - 1) + 1))
        own = least if map_size is None else map_size[axis]
        # Whether and how much is padded depends on the remainder of the size by the stride.
        sides_.append(own if own <= least else least + (own - least) % block.stride[axis])
    return tuple(sides_)
