"""What a whole model loses at each cost, as foretold: the best sizes of all layers together, from small to dense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from norton_plugin.budget import Chooser, LatencyBudget, LayerMenu, OutOfReachError, layer_menus, timed_menus
from norton_plugin.cost import count_cost
from norton_plugin.errors import RecipeError
from norton_plugin.insight.fitted_table import Column, FittedTable
from norton_plugin.insight.numbers import percent
from norton_plugin.latency import LayerClock
from norton_plugin.modules.running import ForwardFunction, counted_by, run_model
from norton_plugin.recipe import Budget, Decomposition, Recipe, Scope

# Shares of the dense model's MACs that are looked at.
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_NOTHING = 1e-9
_ABOVE = 1 + 1e-6  # of the least that can be reached, for rounding
_BAR = 20  # characters of a whole bar


@dataclass(frozen=True)
class FrontPoint:
    """The sizes of all layers that lose least within a share of the MACs.

    Attributes:
        macs: MACs as a share of the dense model's.
        params: Parameters, likewise.
        error: ``-log(1 - NMSE)``, the sum over layers of what their weights lose, without any fitting.
        latency: Milliseconds as a share of the dense model's, None without a table of them.
        milliseconds: The same, None without a table.
    """

    macs: float
    params: float
    error: float
    latency: float | None = None
    milliseconds: float | None = None

    @property
    def kept(self) -> float:
        """Share of the signal that passes all layers."""
        return math.exp(-self.error)


def model_front(
    model: nn.Module,
    example_inputs: Any,
    *,
    scope: Scope | None = None,
    table: str | Path | None = None,
    forward_fn: ForwardFunction | None = None,
) -> tuple[FrontPoint, ...]:
    """Return the predicted Pareto front of a model, cheap ones first; nothing is decomposed or measured.

    Args:
        model: Any model; not changed.
        example_inputs: As of ``pipeline.compress``.
        scope: Layers outside stay dense; Linear layers inside are decomposed, too.
        table: A ``latency.json``, or the artefact that holds one; levels of layers that it lacks are left out. None for
            none.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.

    Raises:
        RecipeError: The table cannot be read, or is of other layers.
        SurgeryError: No layer can be decomposed.
    """
    cost = count_cost(model, lambda: run_model(model, example_inputs, counted_by(forward_fn)))
    recipe = Recipe(
        decomposition=Decomposition(level="auto", linear=True), scope=scope or Scope(), budget=Budget(macs=0.5)
    )
    clock = None
    if table is not None:
        timed = replace(recipe, budget=Budget(latency=0.5, table=str(table)))
        clock = LatencyBudget(model, timed, cost, example_inputs=example_inputs, forward_fn=forward_fn)
    menus = layer_menus(model, recipe, cost)
    if clock is not None:
        menus = timed_menus(_known(menus, clock.clock), clock)
    chooser = Chooser(model, cost, menus, None, whole=None if clock is None else clock.clock.whole)
    found = []
    for share in _within_reach(chooser, recipe):
        plan = chooser.plan(replace(recipe, budget=Budget(macs=share)))
        latency = milliseconds = None
        if clock is not None and plan.latency is not None:
            latency = plan.latency * clock.table.correction
            milliseconds = latency * clock.table.milliseconds
        found.append(FrontPoint(plan.macs, plan.params, plan.error, latency, milliseconds))
    return tuple(found)


def _known(menus: Sequence[LayerMenu], clock: LayerClock) -> list[LayerMenu]:
    """Return menus of what a table has; layers that it lacks stay dense."""
    found = []
    for menu in menus:
        name = menu.target.names[0]
        options = tuple(own for own in menu.options if own.layout is None or clock.knows(name, own.layout))
        if len(options) > 1:
            found.append(replace(menu, options=options))
    if not found:
        raise RecipeError("the table of milliseconds has none of the model's layers; give the one of this very model")
    return found


def _within_reach(chooser: Chooser, recipe: Recipe) -> list[float]:
    """Return the least share that can be reached, and those above it."""
    try:
        chooser.plan(replace(recipe, budget=Budget(macs=_NOTHING)))
    except OutOfReachError as error:
        return [min(1.0, error.least * _ABOVE), *(share for share in _SHARES if share > error.least * _ABOVE)]
    return list(_SHARES)


def front_table(points: Sequence[FrontPoint]) -> FittedTable:
    """Return the points as a table, with a bar for what is kept.

    Args:
        points: As of ``model_front``.
    """
    timed = any(point.latency is not None for point in points)
    columns = [Column("MACs", number=True), Column("parameters", number=True, optional=1)]
    columns += [Column("time", number=True), Column("ms", number=True)] if timed else []
    columns += [Column("error", number=True), Column("signal kept", number=True), Column("")]
    table = FittedTable("the whole model, as foretold", columns)
    for point in points:
        time = [percent(point.latency or 0.0), f"{point.milliseconds or 0.0:.3g}"] if timed else []
        bar = "█" * round(_BAR * point.kept)
        table.add_row(percent(point.macs), percent(point.params), *time, f"{point.error:.3f}", percent(point.kept), bar)
    return table
