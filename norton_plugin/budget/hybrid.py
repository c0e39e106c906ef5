"""Plans within one budget that also prune: what each phase alone would do, and both together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from norton_plugin.budget.joint import Choice, JointMenus
from norton_plugin.budget.measured import MeasuredDivergence
from norton_plugin.budget.menu import layer_menus
from norton_plugin.budget.plan import BudgetPlan, PlannedGroup, out_of_reach, plan_of, planned_layer
from norton_plugin.budget.sensitivity import layer_sensitivities
from norton_plugin.budget.units import pruning_units
from norton_plugin.calibration import take_batches
from norton_plugin.calibration.input_moments import InputMoments
from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.cost import ModelCost
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.recipe import Budget, Recipe
from norton_plugin.surgery.criteria import GroupCriterion

# Images on which a cut, or an error of one layer, is measured.
_IMAGES = 128


def plan_candidates(
    model: nn.Module,
    recipe: Recipe,
    cost: ModelCost,
    *,
    groups: Sequence[ChannelGroup],
    moments: InputMoments,
    batches: Sequence[Any],
    call: Callable[[nn.Module, Any], Any],
    ignored: set[nn.Module],
    ranking: GroupCriterion | None,
) -> list[BudgetPlan]:
    """Return plans of decomposition, of pruning and of both, those of them that meet the budget of a recipe.

    Args:
        model: The dense model; changed while something is measured, and restored.
        recipe: With one budget.
        cost: Of the model.
        groups: Its channel groups.
        moments: Of its layers.
        batches: Unlabelled images.
        call: Runs the model on a batch.
        ignored: Modules whose outputs must keep their width.
        ranking: In place of the recipe's criterion.

    Raises:
        RecipeError: The budget cannot be met; the least that can be is said. Or a pattern matches nothing.
        SurgeryError: No layer can be decomposed, or no image or no gradient reaches any of those that can.
    """
    name = "macs" if recipe.budget.macs is not None else "params"
    share: float = getattr(recipe.budget, name)
    layers = layer_menus(model, recipe, cost)
    targets = [menu.target for menu in layers]
    sensitivities = layer_sensitivities(model, targets, batches, call=call, seed=recipe.calibration.seed)
    if sensitivities is None:
        raise SurgeryError(
            "budget.prune needs what errors of layers cost, and no image or no gradient reaches any of those that may "
            "be decomposed; leave out budget.prune"
        )
    measured = MeasuredDivergence(model, moments, take_batches(batches, _IMAGES), call=call)
    units = pruning_units(groups, recipe.pruning, measured, scope=recipe.scope, ignored=ignored, ranking=ranking)
    menus = JointMenus(model, targets, sensitivities, units, measured, cost=cost, budget=name)
    found = menus.solve(share, decompose=True)
    if isinstance(found, float):
        raise out_of_reach(name, share, found, recipe)
    plans = [_plan(recipe.budget, menus, found)]
    alone = menus.solve(share, decompose=False)
    if not isinstance(alone, float) and any(choice.cut for choice in alone):
        plans.append(_plan(recipe.budget, menus, alone))
    with suppress(RecipeError):  # out of reach without pruning
        plans.append(plan_of(model, recipe, cost, layers, sensitivities))
    phases = ("pruning" if plan is not plans[0] and plan.groups else plan.phases for plan in plans)
    return [replace(plan, phases=phase) for plan, phase in zip(plans, phases, strict=True)]


def _plan(budget: Budget, menus: JointMenus, choices: Sequence[Choice]) -> BudgetPlan:
    layers = [
        planned_layer(choice.name, choice.layout, menus.layer_share(choice, choices), choice.error)
        for choice in choices
        if choice.cut is None
    ]
    groups = [
        PlannedGroup(
            root=choice.name,
            members=tuple(dict.fromkeys(member.name for member in menus.group(choice).producers)),
            before=menus.group(choice).size,
            after=menus.group(choice).size - len(choice.cut.roots),
            error=choice.error,
        )
        for choice in choices
        if choice.cut is not None
    ]
    error = sum(choice.error for choice in choices)
    shares = menus.share("macs", choices), menus.share("params", choices)
    phases = "hybrid" if groups else "decomposition"
    return BudgetPlan(budget, *shares, "divergence", error, tuple(layers), tuple(groups), phases)
