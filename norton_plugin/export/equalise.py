"""Scales inside of lowered blocks, chosen so that bytes hold every component well.

Between the convolutions of a lowered block there is no nonlinearity: channel c of a map in between may be multiplied by
s_c, and the weights that read it divided by s_c, without changing the block. Factors of a CPD have no scale of their
own, so that some components are thousands of times smaller than others; with one scale for a whole map, as int8 has,
they would vanish. The balance of the two is that of cross-layer equalisation (Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", section 4.1), with ranges of real maps in place of those of weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

_SMALLEST = 1e-8  # of a range: a component that is never used keeps its scale


def equalise_(model: nn.Module, images: Sequence[Tensor]) -> int:
    """Balance the ranges of the components inside of lowered blocks, in place; the model computes the same.

    Args:
        model: Lowered, in evaluation mode.
        images: Inputs (B, C, H, W), on which ranges are measured.

    Returns:
        Maps that were balanced.
    """
    pairs = [pair for module in model.modules() for pair in _pairs(module)]
    if not pairs:
        return 0
    ranges: dict[nn.Module, Tensor] = {}

    def remember(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        found = output.detach().abs().amax((0, 2, 3))
        ranges[module] = torch.maximum(ranges[module], found) if module in ranges else found

    handles = [first.register_forward_hook(remember) for first, _ in pairs]
    try:
        with torch.no_grad():
            for image in images:
                model(image)
    finally:
        for handle in handles:
            handle.remove()
    measured = [(first, second) for first, second in pairs if first in ranges]
    with torch.no_grad():
        for first, second in measured:
            _balance_(first, second, ranges[first])
    return len(measured)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    """Yield neighbouring convolutions of a lowered block."""
    if isinstance(module, nn.Sequential) and getattr(module, "from_block", False):
        for first, second in pairwise(module):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
                yield first, second


def _balance_(first: nn.Conv2d, second: nn.Conv2d, largest: Tensor) -> None:
    """Multiply the map between two convolutions, channel by channel.

    Args:
        first: Its weights are multiplied.
        second: Its weights are divided.
        largest: (C,) range of every channel of the map.
    """
    reading = _read_by(second)
    used = (largest > _SMALLEST) & (reading > _SMALLEST)
    scale = largest.clamp_min(_SMALLEST).reciprocal()
    if second.weight.shape[1] > 1:  # else each filter reads one channel, and its weights have a scale of their own
        scale = (scale * reading).sqrt()
    scale = torch.where(used, scale, 1.0)
    first.weight.mul_(scale.view(-1, 1, 1, 1))
    if first.bias is not None:
        first.bias.mul_(scale)
    second.weight.div_(_by_input(second, scale))


def _read_by(conv: nn.Conv2d) -> Tensor:
    """Return (C,) the largest weight that reads each input channel, relative to the largest of its filter."""
    share = conv.weight.abs().amax((2, 3))  # (N, C / groups)
    share = share / share.amax(1, keepdim=True).clamp_min(_SMALLEST)
    return share.view(conv.groups, -1, share.shape[1]).amax(1).flatten()


def _by_input(conv: nn.Conv2d, scale: Tensor) -> Tensor:
    """Return a factor for each input channel, in a shape that fits the weight."""
    per_group = scale.view(conv.groups, 1, -1)
    filters = conv.out_channels // conv.groups
    return per_group.expand(-1, filters, -1).reshape(conv.out_channels, -1, 1, 1)
