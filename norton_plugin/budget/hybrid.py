"""Plans within one budget that also prune: what each phase alone would do, both together, and even pruning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from torch import nn

from norton_plugin.budget.cut_costs import CutCosts
from norton_plugin.budget.decomposing import Chooser
from norton_plugin.budget.even import EVEN, NarrowModel, even_plan, within
from norton_plugin.budget.evidence import Evidence
from norton_plugin.budget.joint import Choice, JointMenus
from norton_plugin.budget.latency import LatencyBudget
from norton_plugin.budget.measured import MeasuredDivergence
from norton_plugin.budget.menu import layer_menus
from norton_plugin.budget.plan import BudgetPlan, PlannedGroup, planned_layer
from norton_plugin.budget.reach import NotTogetherError, OutOfReachError
from norton_plugin.budget.record import SensitivityRecord
from norton_plugin.budget.units import known_units, pruning_units
from norton_plugin.calibration import take_batches
from norton_plugin.calibration.input_moments import InputMoments
from norton_plugin.calibration.memory import MomentMemory
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
    moments: Callable[[], InputMoments],
    batches: Sequence[Any],
    call: Callable[[nn.Module, Any], Any],
    ignored: set[nn.Module],
    ranking: GroupCriterion | None,
    record: SensitivityRecord,
    latency: LatencyBudget | None = None,
    narrowed: Callable[[Recipe], NarrowModel] | None = None,
) -> list[BudgetPlan]:
    """Return plans of decomposition, of pruning and of both, those of them that meet the budget of a recipe.

    Under a budget of milliseconds, and where no other plan meets the budget, one more (even pruning) keeps the same
    share of the channels of all groups: it also narrows the streams of residual networks, and all that has no MACs.

    Args:
        model: The dense model; changed while something is measured, and restored.
        recipe: With a budget.
        cost: Of the model.
        groups: Its channel groups.
        moments: Returns those of its layers, where something is to be measured.
        batches: Unlabelled images.
        call: Runs the model on a batch.
        ignored: Modules whose outputs must keep their width.
        ranking: In place of the recipe's criterion.
        record: What is known of the model on these images; what is measured is added to it.
        latency: Tells milliseconds; needed where the budget names some.
        narrowed: Returns what the model comes to that a recipe prunes; None leaves that last plan out.

    Raises:
        RecipeError: The budget cannot be met; the least that can be is said. Or a pattern matches nothing.
        SurgeryError: No layer can be decomposed, or no image or no gradient reaches any of those that can.
    """
    layers = layer_menus(model, recipe, cost, latency)
    targets = [menu.target for menu in layers]
    memory = MomentMemory(recipe.calibration.memory_bytes).halved()  # the other half is for what tells divergences
    known: dict[str, Any] = {"record": record, "memory": memory, "seed": recipe.calibration.seed}
    evidence = Evidence(model, targets, batches, call=call, **known)
    if not evidence.reached:
        raise SurgeryError(
            "budget.prune needs what errors of layers cost, and no image or no gradient reaches any of those that may "
            "be decomposed; leave out budget.prune"
        )
    measured = cache(lambda: MeasuredDivergence(model, moments(), take_batches(batches, _IMAGES), call=call))
    units = known_units(groups, record.cuts)
    if units is None:
        settings: dict[str, Any] = {"scope": recipe.scope, "ignored": ignored, "ranking": ranking}
        units = pruning_units(groups, recipe.pruning, measured(), **settings)
        record.cuts = {unit.group.root: [(cut.roots, cut.divergence) for cut in unit.cuts] for unit in units}
    clock = None if latency is None else latency.clock
    costs = CutCosts(model, evidence.targets, units, cost, clock)
    menus = JointMenus(evidence, units, measured, costs=costs)
    alone = Chooser(model, cost, layers, evidence, whole=None if clock is None else clock.whole)

    def planned(solve: Callable[[Recipe], BudgetPlan]) -> BudgetPlan:
        return solve(recipe) if latency is None else latency.meet(recipe, solve)

    ways: dict[str, Callable[[], BudgetPlan]] = {
        "hybrid": lambda: planned(lambda own: _plan(own.budget, menus, menus.solve(own, decompose=True))),
        "pruning": lambda: planned(lambda own: _plan(own.budget, menus, menus.solve(own, decompose=False))),
        "decomposition": lambda: planned(alone.plan),
    }
    plans, missed = _those_within(ways)
    if narrowed is not None and (latency is not None or not plans):
        even = even_plan(recipe, cost, [menu.target.names[0] for menu in layers], narrowed=narrowed)
        if within(even):
            plans.append(even)
        else:
            missed[EVEN] = _out_of_reach(missed.get("hybrid"), even, recipe)
    if not plans:
        raise missed.get(EVEN, missed["hybrid"])
    return [replace(plan, missed=tuple(missed)) for plan in plans]


def _those_within(
    ways: Mapping[str, Callable[[], BudgetPlan]],
) -> tuple[list[BudgetPlan], dict[str, RecipeError]]:
    """Return the plans that meet the budget, and what those that do not say."""
    plans: list[BudgetPlan] = []
    missed: dict[str, RecipeError] = {}
    for phases, way in ways.items():
        try:
            plan = way()
        except RecipeError as error:
            # Layers that hold one weight free it together, which decomposition alone counts on.
            if phases == "hybrid" and not isinstance(error, OutOfReachError | NotTogetherError):
                raise
            missed[phases] = error
            continue
        if phases != "pruning":
            plans.append(plan)
        elif plan.groups:
            plans.append(replace(plan, phases="pruning"))
    return plans, missed


def _out_of_reach(error: RecipeError | None, least: BudgetPlan, recipe: Recipe) -> RecipeError:
    """Return what to say where neither the phases nor one share of all channels meet a budget.

    Args:
        error: Of both phases together.
        least: The plan of the smallest share.
        recipe: With the budget.
    """
    if not isinstance(error, OutOfReachError):
        return error or NotTogetherError(recipe.budget.limits)
    reached = {"macs": least.macs, "params": least.params, "latency": least.latency or 1.0}[error.name]
    return OutOfReachError(error.name, recipe.budget.limits[error.name], min(error.least, reached), recipe)


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
    shares = {name: menus.share(name, choices) for name in menus.budgets}
    phases = "hybrid" if groups else "decomposition"
    facts = "divergence", error, tuple(layers), tuple(groups), phases
    return BudgetPlan(budget, shares["macs"], shares["params"], *facts, latency=shares.get("latency"))
