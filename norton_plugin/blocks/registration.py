"""What the channel graph has to know of blocks: they run as the dense layers that they equal."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from norton_plugin.blocks.conv_block import ConvBlock
from norton_plugin.blocks.cpd_block import CPDBlock
from norton_plugin.blocks.cpd_block_nd import CPD_BLOCKS
from norton_plugin.blocks.cpd_linear import CPDLinear
from norton_plugin.blocks.dense import convolve
from norton_plugin.blocks.selection import compact_, compact_linear_
from norton_plugin.blocks.spatial_selection import compact_spatial_
from norton_plugin.blocks.spatial_svd_block import SpatialSVDBlock
from norton_plugin.channels.layers import (
    CurrentSizes,
    Cuts,
    DenseEquivalent,
    LayerType,
    refresh_grouped_,
    register_layer,
)


def _dense_weight(block: ConvBlock) -> Tensor:
    return block.weight


def _linear_weight(layer: CPDLinear) -> Tensor:
    return layer.weight


def _linear_forward(layer: CPDLinear, weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight, layer.bias)


def _refresh_linear_(layer: CPDLinear, sizes: CurrentSizes) -> None:
    compact_linear_(layer)


def _dense_forward(block: ConvBlock, weight: Tensor, x: Tensor) -> Tensor:
    return convolve(block, x, weight, block.bias)


def _cuts(block: CPDBlock) -> Cuts:
    """Return what goes with a filter: its mix and its place, or its own components."""
    if block.mix is None:
        return {0: [(name, 0) for name in ("head", *block.axes)], 1: [("head", 2)]}
    rows = [("mix", 0)] if block.slot is None else [("mix", 0), ("slot", 0)]
    return {0: rows, 1: [("head", 2)]}


def _refresh_(block: CPDBlock, sizes: CurrentSizes) -> None:
    groups = block.groups
    refresh_grouped_(block, sizes, block.head.shape[2])
    compact_(block, groups=groups)


def _spatial_cuts(block: SpatialSVDBlock) -> Cuts:
    """Return what goes with a filter: its row of the horizontal convolution, and where there are groups, its own."""
    return {0: [("horizontal", 0), *([] if block.group is None else [("group", 0)])], 1: [("vertical", 1)]}


def _refresh_spatial_(block: SpatialSVDBlock, sizes: CurrentSizes) -> None:
    refresh_grouped_(block, sizes, block.vertical.shape[1])
    compact_spatial_(block)


CPD_LAYERS = tuple(
    register_layer(
        LayerType(
            kind,
            produces=True,
            dense=DenseEquivalent(weight=_dense_weight, forward=_dense_forward, cuts=_cuts, tensors=kind.axes),
            refresh=_refresh_,
        )
    )
    for kind in CPD_BLOCKS.values()
)

CPD_LINEAR_LAYER = register_layer(
    LayerType(
        CPDLinear,
        produces=True,
        dense=DenseEquivalent(weight=_linear_weight, forward=_linear_forward, cuts={0: [("mix", 0)], 1: [("head", 1)]}),
        refresh=_refresh_linear_,
    )
)

SPATIAL_SVD_LAYER = register_layer(
    LayerType(
        SpatialSVDBlock,
        produces=True,
        dense=DenseEquivalent(weight=_dense_weight, forward=_dense_forward, cuts=_spatial_cuts),
        refresh=_refresh_spatial_,
    )
)
