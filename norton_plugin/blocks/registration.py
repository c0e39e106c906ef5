"""What the channel graph has to know of a CPDBlock: it runs as the dense convolution that it equals."""

from __future__ import annotations

from torch import Tensor

from norton_plugin.blocks.cpd_block import CPDBlock
from norton_plugin.blocks.dense import convolve
from norton_plugin.channels.layers import (
    CurrentSizes,
    DenseEquivalent,
    LayerType,
    refresh_grouped_,
    register_layer,
)


def _dense_weight(block: CPDBlock) -> Tensor:
    return block.weight


def _dense_forward(block: CPDBlock, weight: Tensor, x: Tensor) -> Tensor:
    return convolve(block, x, weight, block.bias)


def _refresh_(block: CPDBlock, sizes: CurrentSizes) -> None:
    block.out_channels = block.head.shape[0]
    refresh_grouped_(block, sizes, block.head.shape[2])


CPD_LAYER = register_layer(
    LayerType(
        CPDBlock,
        produces=True,
        dense=DenseEquivalent(
            weight=_dense_weight,
            forward=_dense_forward,
            cuts={0: [("head", 0), ("vertical", 0), ("horizontal", 0)], 1: [("head", 2)]},
        ),
        refresh=_refresh_,
    )
)
