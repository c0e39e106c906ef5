"""A model of the sizes that a plan names, with random factors: it takes as long as a fitted one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.latency.layers import random_block
from norton_plugin.modules.duplication import counterparts, duplicate
from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.modules.running import ForwardFunction
from norton_plugin.modules.swap import swap_
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.criteria import GroupCriterion
from norton_plugin.surgery.prune import prune_
from norton_plugin.surgery.targets import MapSizes, plan_decomposition


@preserved_random_state()
def skeleton(
    model: nn.Module,
    recipe: Recipe,
    *,
    example_inputs: Any,
    map_sizes: MapSizes,
    ignored: Sequence[nn.Module] = (),
    forward_fn: ForwardFunction | None = None,
    ranking: GroupCriterion | None = None,
    verify: bool = False,
) -> nn.Module:
    """Return a copy of a model in the sizes of a recipe; no weight is decomposed.

    Args:
        model: The dense model.
        recipe: With a size for each layer, or shares of channels.
        example_inputs: As the model takes them.
        map_sizes: Of its layers.
        ignored: Modules of the model whose outputs must keep their width.
        forward_fn: In place of the plain call.
        ranking: Groups that it cannot rank are left whole; any channels go by default.
        verify: Leave groups whole that cannot be proved, as a compression does.

    Raises:
        SurgeryError: Nothing was proved, and pruning a group breaks the model.
    """
    copied = duplicate(model)
    frozen = counterparts(model, copied, ignored)  # their blocks are looked up once they are there
    if recipe.decomposition.active:
        targets, _ = plan_decomposition(copied, recipe.decomposition, scope=recipe.scope, map_sizes=map_sizes)
        swap_(copied, {t.module: random_block(t.contract, t.layouts[0], like=t.module) for t in targets})
    if recipe.pruning.active:
        prune_(
            copied,
            example_inputs,
            recipe.pruning,
            scope=recipe.scope,
            ignored=frozen,
            verify=verify,
            forward_fn=forward_fn,
            require=False,
            time_limit=recipe.time_limit,
            criterion=ranking or _first_channels,
        )
    return copied


def _first_channels(group: ChannelGroup) -> torch.Tensor:
    return torch.arange(group.size, dtype=torch.float64)
