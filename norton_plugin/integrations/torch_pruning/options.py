"""The keyword arguments that a Torch-Pruning pruner needs for models with blocks of factors."""

from __future__ import annotations

from typing import Any

import torch_pruning as tp

from norton_plugin.blocks import CPD_BLOCKS, CPDLinear, SpatialSVDBlock
from norton_plugin.integrations.torch_pruning.block_pruner import (
    CPDBlockPruner,
    CPDLinearPruner,
    SpatialSVDBlockPruner,
)


def pruner_options() -> dict[str, Any]:
    """Return keyword arguments for any pruner of Torch-Pruning, so that it prunes blocks too.

    The tables of channel groups and heads are fresh in every call: those that Torch-Pruning 1.6 takes by default are
    one and the same dict for all pruners of a process, and what one model writes there breaks the next.

    Returns:
        ``customized_pruners``, ``root_module_types`` (convolutions, Linear, LSTM, and all kinds of blocks) and
        empty tables.
    """
    tables = ("in_channel_groups", "out_channel_groups", "num_heads", "channel_groups")
    blocks = (*CPD_BLOCKS.values(), SpatialSVDBlock, CPDLinear)
    roots = [tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR, tp.ops.TORCH_LSTM, *blocks]
    return {
        "customized_pruners": {
            **{kind: CPDBlockPruner() for kind in CPD_BLOCKS.values()},
            SpatialSVDBlock: SpatialSVDBlockPruner(),
            CPDLinear: CPDLinearPruner(),
        },
        "root_module_types": roots,
        **{table: {} for table in tables},
    }
