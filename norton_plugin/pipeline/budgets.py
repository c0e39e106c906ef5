"""From the budget of a recipe to sizes of layers, with the settings of a compression."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from norton_plugin.budget import BudgetPlan, LatencyBudget, plan_budget
from norton_plugin.calibration import take_batches
from norton_plugin.modules.running import calibrated_by, run_model
from norton_plugin.pipeline.phases import Phases
from norton_plugin.recipe import Recipe

# Most images that errors are weighed on for a budget: more change little.
_IMAGES = 512


def latency_budget(phases: Phases, recipe: Recipe, *, ignored: Sequence[nn.Module]) -> LatencyBudget | None:
    """Return what tells milliseconds, with the dense model timed; None where no budget names any.

    Args:
        phases: What they work with.
        recipe: May have a budget.
        ignored: Modules of the dense model whose outputs must keep their width.

    Raises:
        RecipeError: The table that the budget names cannot be read.
    """
    if recipe.budget.latency is None:
        return None
    phases.step("time")
    inputs = {"example_inputs": phases.example_inputs, "forward_fn": phases.forward_fn, "ignored": ignored}
    return LatencyBudget(phases.model, recipe, phases.cost, on_detail=phases.detail, **inputs)


def within_budget(
    phases: Phases, model: nn.Module, recipe: Recipe, latency: LatencyBudget | None
) -> tuple[Recipe, BudgetPlan | None]:
    """Return the recipe with sizes in place of its budget, and how they were found; as it is where it has none.

    Args:
        phases: What they work with.
        model: A copy of the dense model; left as it is.
        recipe: May have a budget, which does not prune.
        latency: As of ``latency_budget``.
    """
    if not recipe.budget.given:
        return recipe, None
    phases.step("budget")
    batches = None if phases.calibration is None else take_batches(phases.calibration, _IMAGES)
    call = partial(run_model, forward_fn=calibrated_by(phases.forward_fn))
    plan = plan_budget(model, recipe, phases.cost, batches=batches, call=call, latency=latency)
    return plan.recipe(recipe), plan
