"""The levels that the benchmarks compare, as recipes at the MACs of one rank per filter.

The first convolution (3 input channels) stays dense at every level and for every method.
"""

from __future__ import annotations

from torch import nn

from norton_plugin.blocks import ConvBlock
from norton_plugin.recipe import Decomposition, Recipe, Scope

BLOCKS = Scope(include=("layer*.conv*",))
# Filters of a stage of ResNet-20 and ResNet-56.
_WIDTHS = {"layer1": 16, "layer2": 32, "layer3": 64}
LEVELS = ("filter", "clusters_of_4", "clusters_of_8", "cluster4", "cluster2", "layer")


def recipe_for(level: str, rank: int, *, seed: int = 0) -> Recipe:
    """Return the recipe of a level at the MACs of a rank per filter.

    Args:
        level: ``"filter"``, ``"layer"``, ``"spatial"``, ``"clusterK"`` for K clusters in each layer,
            ``"clusters_of_S"`` for N / S.
        rank: R.
        seed: Of the decomposition's starts.
    """
    if level in ("filter", "layer", "spatial"):
        decomposition = Decomposition(level=level, rank=rank, seed=seed)  # type: ignore[arg-type]
    elif level.startswith("clusters_of_"):
        size = int(level.removeprefix("clusters_of_"))
        layers = {f"{stage}.*": {"clusters": width // size} for stage, width in _WIDTHS.items()}
        decomposition = Decomposition(level="cluster", clusters=2, rank=rank, layers=layers, seed=seed)
    else:
        clusters = int(level.removeprefix("cluster"))
        decomposition = Decomposition(level="cluster", clusters=clusters, rank=rank, seed=seed)
    return Recipe(scope=BLOCKS, decomposition=decomposition)


def run_dense_(model: nn.Module) -> None:
    """Let every block rebuild its weight: all forms compute the same, on these small maps this one is the fastest."""
    for block in model.modules():
        if isinstance(block, ConvBlock):
            block.form = block.training_form = "dense"
