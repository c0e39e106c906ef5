"""What each layer may become, and what it would cost the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from norton_plugin.budget.latency import LatencyBudget
from norton_plugin.cost import ModelCost
from norton_plugin.errors import SurgeryError
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.layouts import Layout, filling_lanes, highest_layouts
from norton_plugin.surgery.report import summary
from norton_plugin.surgery.targets import Target, plan_decomposition

# Sizes of one level, evenly from small to the one that just saves MACs.
_SIZES = 64


@dataclass(frozen=True)
class Option:
    """One way for a layer to be.

    Attributes:
        layout: Level, clusters and rank; None leaves it dense.
        macs: Of all its calls in one pass.
        parameters: Numbers in its weight or its factors.
        nanoseconds: Of all its calls in one pass; 0 where no budget names milliseconds.
    """

    layout: Layout | None
    macs: int
    parameters: int
    nanoseconds: int = 0


@dataclass(frozen=True)
class LayerMenu:
    """All options of one layer.

    Attributes:
        target: The layer.
        options: The dense one, then each level from its smallest size on.
    """

    target: Target
    options: tuple[Option, ...]


def layer_menus(
    model: nn.Module, recipe: Recipe, cost: ModelCost, latency: LatencyBudget | None = None
) -> list[LayerMenu]:
    """Return a menu for every layer that may be decomposed, in the model's order.

    Args:
        model: Not changed.
        recipe: Its scope, its levels, and patterns that leave layers dense.
        cost: Of the model.
        latency: Tells milliseconds, which are measured here; None without a budget of them.

    Raises:
        RecipeError: A pattern matches nothing, or a table that was given lacks a layer.
        SurgeryError: There is no such layer.
    """
    asked = replace(recipe.decomposition, share=1.0, allow_more_macs=False)
    targets, skipped = plan_decomposition(model, asked, scope=recipe.scope, map_sizes=cost.map_sizes)
    menus = []
    for target in targets:
        macs = sum(cost.layer_macs.get(name, 0) for name in target.names)
        layouts = layouts_of(target)
        if macs and layouts:
            menus.append(LayerMenu(target, _options(target, macs, layouts)))
    if latency is not None:
        menus = timed_menus(menus, latency)
    if not menus:
        level = recipe.decomposition.level
        raise SurgeryError(f"no layer can become smaller at level {level!r}: {summary(skipped) or 'there is none'}")
    return menus


def _options(target: Target, macs: int, layouts: Sequence[Layout]) -> tuple[Option, ...]:
    shape = target.shape
    dense = Option(None, macs, shape.dense_parameters)
    # Calls of other map sizes shrink by the same ratio.
    smaller = [
        Option(layout, -(-macs * shape.macs(layout) // shape.dense_macs), shape.parameters(layout))
        for layout in layouts
    ]
    return dense, *smaller


def timed_menus(menus: Sequence[LayerMenu], latency: LatencyBudget) -> list[LayerMenu]:
    """Return menus whose options also tell their time.

    Raises:
        RecipeError: A table that was given lacks a layer.
    """
    layouts = {m.target.names[0]: [o.layout for o in m.options if o.layout is not None] for m in menus}
    latency.settle(layouts)
    timed = []
    for menu in menus:
        found = latency.clock.nanoseconds(menu.target.names[0], [option.layout for option in menu.options])
        options = tuple(replace(own, nanoseconds=ns) for own, ns in zip(menu.options, found, strict=True))
        timed.append(replace(menu, options=options))
    return timed


def layouts_of(target: Target) -> list[Layout]:
    """Return the sizes of every level that is asked for."""
    linear = isinstance(target.module, nn.Linear)
    found = []
    for highest in highest_layouts(target.shape, target.request):
        if linear and highest.clusters != 1:
            continue
        ranks = {max(1, highest.rank * step // _SIZES) for step in range(1, _SIZES + 1)}
        if highest.clusters is not None:
            ranks = {filling_lanes(rank, highest.clusters) or rank for rank in ranks}
        found += [replace(highest, rank=rank) for rank in sorted(ranks)]
    return found
