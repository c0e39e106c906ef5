"""Pruning alone, one share for the channels of all groups: the model becomes narrower as a whole, streams too."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from norton_plugin.budget.latency import TOLERANCE
from norton_plugin.budget.plan import BudgetPlan, Milliseconds, PlannedLayer, planned_layer
from norton_plugin.cost import ModelCost
from norton_plugin.recipe import Recipe

EVEN = "even pruning"
# Shares that are tried are multiples of one over this.
_STEPS = 64


@dataclass(frozen=True)
class NarrowModel:
    """What a model costs whose channels were pruned, whichever they are.

    Attributes:
        cost: MACs and parameters.
        milliseconds: As delivered, timed in turns with the dense model; None where no budget names any.
    """

    cost: ModelCost
    milliseconds: Milliseconds | None = None


def even_plan(
    recipe: Recipe, dense: ModelCost, layers: Sequence[str], *, narrowed: Callable[[Recipe], NarrowModel]
) -> BudgetPlan:
    """Return the plan that keeps the largest share of all channels within the budget, to one 64th.

    Args:
        recipe: With the budget.
        dense: Cost of the dense model.
        layers: Names of those that might have been decomposed.
        narrowed: Returns what the model comes to that a recipe prunes.

    Returns:
        The plan; where none is within the budget, that of the smallest share (see `within`).
    """
    plans: dict[int, BudgetPlan] = {}

    def exceeds(steps: int) -> bool:
        plans[steps] = _plan(recipe, dense, layers, keep=steps / _STEPS, narrowed=narrowed)
        return not within(plans[steps])

    least = max(1, math.ceil(_STEPS * recipe.pruning.min_keep))
    first = bisect_left(range(_STEPS), True, lo=least, hi=_STEPS, key=exceeds)  # share that exceeds the budget
    found = plans.get(first - 1) or plans.get(first) or _plan(recipe, dense, layers, keep=1.0, narrowed=narrowed)
    if found.milliseconds is None:
        return found
    return replace(found, milliseconds=replace(found.milliseconds, plans=len(plans)))


def within(plan: BudgetPlan) -> bool:
    """Tell whether a plan is within its budget; what is measured may exceed it by `TOLERANCE`."""
    reached = {"macs": plan.macs, "params": plan.params, "latency": plan.latency}
    slack = {"latency": 1 + TOLERANCE}
    return all((reached[name] or 0.0) <= share * slack.get(name, 1.0) for name, share in plan.budget.limits.items())


def _plan(
    recipe: Recipe,
    dense: ModelCost,
    layers: Sequence[str],
    *,
    keep: float,
    narrowed: Callable[[Recipe], NarrowModel],
) -> BudgetPlan:
    nothing = tuple(planned_layer(name, None, 1.0, 0.0) for name in layers)
    plan = BudgetPlan(recipe.budget, 1.0, 1.0, "divergence", 0.0, nothing, phases=EVEN, keep=keep)
    found = narrowed(plan.recipe(recipe))
    return replace(
        plan,
        macs=found.cost.macs / dense.macs,
        params=found.cost.parameters / dense.parameters,
        layers=tuple(_narrow(layer, found.cost, dense) for layer in nothing),
        latency=None if found.milliseconds is None else found.milliseconds.share,
        milliseconds=found.milliseconds,
    )


def _narrow(layer: PlannedLayer, cost: ModelCost, dense: ModelCost) -> PlannedLayer:
    before = dense.layer_macs.get(layer.name, 0)
    return replace(layer, macs=cost.layer_macs.get(layer.name, 0) / before if before else 1.0)
