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
from typing import Any

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
    scaled: dict[nn.Module, Tensor] = {}  # what the map before was multiplied by: ranges were measured before
    balanced = 0
    with torch.no_grad():
        for first, second in pairs:
            if first in ranges:
                scaled[first] = _balance_(first, second, ranges[first])
                balanced += 1
    return balanced


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    """Yield neighbouring convolutions of a lowered block."""
    if isinstance(module, nn.Sequential) and getattr(module, "from_block", False):
        for first, second in pairwise(module):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
                yield first, second


def _balance_(first: nn.Conv2d, second: nn.Conv2d, largest: Tensor) -> Tensor:
    """Multiply the map between two convolutions, channel by channel.

    Args:
        first: Its weights are multiplied.
        second: Its weights are divided.
        largest: (C,) range of every channel of the map.
    """
    reading = _read_by(second)
    if second.in_channels == second.groups and second.out_channels == second.groups:
        wanted = torch.ones_like(reading)  # every channel has a weight scale of its own
    else:
        wanted = reading / reading.max().clamp_min(_SMALLEST)
    used = (largest > _SMALLEST) & (wanted > _SMALLEST)
    scale = torch.where(used, wanted / largest.clamp_min(_SMALLEST), 1.0)
    if second.in_channels != second.groups or second.out_channels != second.groups:
        scale = torch.where(used, scale.sqrt(), 1.0)
    first.weight.mul_(scale.view(-1, 1, 1, 1))
    if first.bias is not None:
        first.bias.mul_(scale)
    second.weight.div_(_by_input(second, scale))
    return scale


def _read_by(conv: nn.Conv2d) -> Tensor:
    """Return (C,) the largest weight that reads each input channel, relative to the largest of its filter."""
    share = conv.weight.abs().amax((2, 3))  # (N, C / groups)
    share = share / share.amax(1, keepdim=True).clamp_min(_SMALLEST)
    return share.view(conv.groups, -1, share.shape[1]).amax(1).flatten()


def _by_input(conv: nn.Conv2d, scale: Tensor) -> Any:
    """Return a factor for each input channel, in the shape of the weight."""
    per_group = scale.view(conv.groups, 1, -1)
    filters = conv.out_channels // conv.groups
    return per_group.expand(-1, filters, -1).reshape(conv.out_channels, -1, 1, 1)
