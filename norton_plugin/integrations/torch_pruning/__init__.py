"""Torch-Pruning: its pruners on CPDBlocks, PABS as its importance, and its importances as criteria of this package.

In a program of Torch-Pruning::

    from norton_plugin.integrations.torch_pruning import PABSImportance, pruner_options

    pruner = tp.pruner.BasePruner(model, example, PABSImportance(), pruning_ratio=0.5, **pruner_options())
    pruner.step()
"""

from norton_plugin.integrations.torch_pruning.block_pruner import (
    CPDBlockPruner,
    CPDLinearPruner,
    SpatialSVDBlockPruner,
)
from norton_plugin.integrations.torch_pruning.criteria import criterion_of
from norton_plugin.integrations.torch_pruning.options import pruner_options
from norton_plugin.integrations.torch_pruning.pabs_importance import PABSImportance

__all__ = [
    "CPDBlockPruner",
    "CPDLinearPruner",
    "PABSImportance",
    "SpatialSVDBlockPruner",
    "criterion_of",
    "pruner_options",
]
