"""Chains of plain convolutions that take a layer's place: every level's forms, Tucker-2 and the spatial SVD."""

from __future__ import annotations

from bisect import bisect_right

import torch
from layer_shapes import Layer
from torch import Tensor, nn

from norton_plugin import CPDBlock, SpatialSVDBlock
from norton_plugin.blocks import Form
from norton_plugin.deploy import lower_block
from norton_plugin.surgery.layouts import Layout, filling_lanes


def level_chain(layer: Layer, layout: Layout, form: Form) -> nn.Module:
    """Return a lowered block with random factors, its filters in no order where they come in clusters."""
    if layout.level == "spatial":
        spatial = SpatialSVDBlock(layer.channels, layer.filters, 3, layout.rank, stride=layer.stride, padding=1)
        return lower_block(spatial.eval(), form)
    block = CPDBlock(
        layer.channels, layer.filters, 3, layout.rank, clusters=layout.clusters, stride=layer.stride, padding=1
    )
    if block.slot is not None:
        block.slot = torch.randperm(layer.filters)
    return lower_block(block.eval(), form)


def forms_of(layout: Layout) -> tuple[Form, ...]:
    """Return the forms that compute fewer MACs than the dense one; grouped is nearly dense for large clusters."""
    if layout.level == "spatial":
        return ("separable",)
    return ("separable", "grouped", "depthwise") if layout.level == "filter" else ("separable", "depthwise")


def tucker2_chain(layer: Layer, core: Tensor, out: Tensor, into: Tensor) -> nn.Sequential:
    """Return pointwise, small dense Kh x Kw, pointwise.

    Args:
        layer: Whose place it takes.
        core: (A, B, Kh, Kw).
        out: (N, A).
        into: (C, B).
    """
    steps = [
        _conv(into.mT[:, :, None, None]),
        _conv(core, stride=(layer.stride, layer.stride), padding=(1, 1)),
        _conv(out[:, :, None, None], bias=True),
    ]
    return nn.Sequential(*steps)


def spatial_svd_chain(layer: Layer, vertical: Tensor, horizontal: Tensor) -> nn.Sequential:
    """Return a vertical and a horizontal convolution.

    Args:
        layer: Whose place it takes.
        vertical: (R, C, Kh).
        horizontal: (N, R, Kw).
    """
    return nn.Sequential(
        _conv(vertical[..., None], stride=(layer.stride, 1), padding=(1, 0)),
        _conv(horizontal[:, :, None], stride=(1, layer.stride), padding=(0, 1), bias=True),
    )


def rank_within(layer: Layer, method: str, macs: float) -> int:
    """Return the largest rank of Tucker-2 (of the filters, the same share of the channels) or spatial SVD.

    Args:
        layer: Whose place it takes.
        method: ``"tucker2"`` or ``"svd_spatial"``.
        macs: Most that it may cost. The rank is rounded down to fill vector lanes, as the recipe does for components.
    """
    most = layer.filters if method == "tucker2" else 3 * min(layer.filters, layer.channels)
    ranks = range(1, most)
    rank = bisect_right(ranks, macs, key=lambda r: chain_macs(random_chain(layer, method, r, "meta"), layer))
    return filling_lanes(rank, 1)


def random_chain(layer: Layer, method: str, rank: int, device: str = "cpu") -> nn.Sequential:
    """Return a chain of random factors, for its cost alone; on the device "meta" it takes no memory."""
    n, c = layer.filters, layer.channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    if method == "tucker2":
        into = min(c, max(1, round(rank * c / n)))
        return tucker2_chain(layer, normal(rank, into, 3, 3), normal(n, rank), normal(c, into))
    return spatial_svd_chain(layer, normal(rank, c, 3), normal(n, rank, 3))


def dense_conv(layer: Layer) -> nn.Conv2d:
    """Return the layer itself."""
    return nn.Conv2d(layer.channels, layer.filters, 3, layer.stride, 1).eval()


def chain_macs(chain: nn.Module, layer: Layer) -> int:
    """Count the MACs of a chain per image, by its weights and the maps they run on."""
    height = width = layer.size
    total = 0
    for conv in chain.modules():
        if isinstance(conv, nn.Conv2d):
            height, width = (
                (side + 2 * pad - kernel) // stride + 1
                for side, pad, kernel, stride in zip(
                    (height, width), conv.padding, conv.kernel_size, conv.stride, strict=True
                )
            )
            total += conv.weight.numel() * height * width
    return total


def _conv(
    weight: Tensor, *, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0), bias: bool = False
) -> nn.Conv2d:
    conv = nn.Conv2d(
        weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), stride, padding, bias=bias, device=weight.device
    )
    conv.weight.data.copy_(weight)
    if conv.bias is not None:
        conv.bias.data.zero_()
    return conv.eval()
