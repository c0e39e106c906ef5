"""Pruning alone, one share for the channels of all groups: the model becomes narrower as a whole, streams too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from norton_plugin.budget.latency import TOLERANCE
from norton_plugin.budget.plan import BudgetPlan, Milliseconds, PlannedLayer, planned_layer
from norton_plugin.cost import ModelCost
from norton_plugin.recipe import Recipe

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
) -> BudgetPlan | None:
    """Return the plan that keeps the largest share of all channels within the budget; None where none does.

    Args:
        recipe: With the budget.
        dense: Cost of the dense model.
        layers: Names of those that might have been decomposed.
        narrowed: Returns what the model comes to that a recipe prunes.
    """
    least = max(1, math.ceil(_STEPS * recipe.pruning.min_keep))
    best: BudgetPlan | None = None
    low, high = least, _STEPS  # shares below ``low`` meet the budget, those from ``high`` on do not
    while low < high:
        middle = (low + high) // 2
        plan = _plan(recipe, dense, layers, keep=middle / _STEPS, narrowed=narrowed)
        if _meets(plan):
            best, low = plan, middle + 1
        else:
            high = middle
    return best


def _plan(
    recipe: Recipe,
    dense: ModelCost,
    layers: Sequence[str],
    *,
    keep: float,
    narrowed: Callable[[Recipe], NarrowModel],
) -> BudgetPlan:
    nothing = tuple(planned_layer(name, None, 1.0, 0.0) for name in layers)
    facts = {"measure": "divergence", "error": 0.0, "layers": nothing, "phases": "pruning, one share", "keep": keep}
    plan = BudgetPlan(recipe.budget, 1.0, 1.0, **facts)  # type: ignore[arg-type]
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


def _meets(plan: BudgetPlan) -> bool:
    reached = {"macs": plan.macs, "params": plan.params, "latency": plan.latency}
    slack = {"latency": 1 + TOLERANCE}
    return all((reached[name] or 0.0) <= share * slack.get(name, 1.0) for name, share in plan.budget.limits.items())
