"""A plan that decomposes layers: menus, what their options lose, and the best choice within the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from norton_plugin.budget.distortion import added_error, weight_errors
from norton_plugin.budget.evidence import Evidence
from norton_plugin.budget.latency import LatencyBudget
from norton_plugin.budget.menu import LayerMenu, Option, layer_menus
from norton_plugin.budget.plan import BudgetPlan, PlannedLayer, planned_layer
from norton_plugin.budget.reach import NotTogetherError, OutOfReachError
from norton_plugin.budget.record import SensitivityRecord, new_record
from norton_plugin.budget.solve import Values, choose_options
from norton_plugin.budget.tied import JointOption, joint_menus
from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.cost import ModelCost
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.layouts import Layout


def plan_budget(
    model: nn.Module,
    recipe: Recipe,
    cost: ModelCost,
    *,
    batches: Sequence[Any] | None = None,
    call: Callable[[nn.Module, Any], Any] | None = None,
    latency: LatencyBudget | None = None,
    record: SensitivityRecord | None = None,
) -> BudgetPlan:
    """Find the level and the size of every layer that lose least within the budget of a recipe.

    Args:
        model: Not changed.
        recipe: With a budget; its scope and levels hold.
        cost: Of the model.
        batches: Unlabelled images; with them errors are those of outputs, by their weight for the model's own.
        call: Runs the model on a batch; ``model(batch)`` by default.
        latency: Tells milliseconds; needed where the budget names some.
        record: What is known of the model on these images; what is measured is added to it.

    Raises:
        RecipeError: The budget cannot be met; the least that can be is said. Or a pattern matches nothing.
        SurgeryError: No layer can be decomposed.
        MissingExtraError: There are several budgets, and scipy is not installed.
    """
    menus = layer_menus(model, recipe, cost, latency)
    evidence = None
    if batches:
        targets, run = [menu.target for menu in menus], call or (lambda own, batch: own(batch))
        record = record or new_record(model, batches, recipe)
        memory = MomentMemory(recipe.calibration.memory_bytes)
        known: dict[str, Any] = {"record": record, "memory": memory, "seed": recipe.calibration.seed}
        found = Evidence(model, targets, batches, call=run, **known)
        evidence = found if found.reached else None
    chooser = Chooser(model, cost, menus, evidence, whole=None if latency is None else latency.clock.whole)
    return chooser.plan(recipe) if latency is None else latency.meet(recipe, chooser.plan)


class Chooser:
    """Chooses from the menus of layers within budgets.

    Args:
        model: Tells which layers hold one weight.
        cost: Of the model.
        menus: Of the layers that may be decomposed.
        evidence: Tells what is lost of each layer's outputs; None where errors of the weights are taken.
        whole: Nanoseconds of the dense model; None where no budget names milliseconds.
    """

    def __init__(
        self,
        model: nn.Module,
        cost: ModelCost,
        menus: Sequence[LayerMenu],
        evidence: Evidence | None,
        *,
        whole: int | None = None,
    ) -> None:
        self._menus = menus
        self._measure = "weights" if evidence is None else "outputs"
        self._errors = [_errors(menu, evidence) for menu in menus]
        self._joint = joint_menus(model, menus, self._errors)
        self._total = {"macs": cost.macs, "params": cost.parameters} | ({} if whole is None else {"latency": whole})
        dense = [menu.options[0] for menu in self._joint]
        self._fixed = {name: total - _sum(dense, name) for name, total in self._total.items()}

    def plan(self, recipe: Recipe) -> BudgetPlan:
        """Return the plan that loses least within the budget of a recipe.

        Raises:
            OutOfReachError: One budget cannot be met.
            RecipeError: They cannot be met together.
            MissingExtraError: There are several, and scipy is not installed.
        """
        picked = self._chosen(recipe)
        places = {
            member: place
            for menu, option in zip(self._joint, picked, strict=True)
            for member, place in zip(menu.members, option.places, strict=True)
        }
        layers = tuple(
            _planned(menu, menu.options[places[i]], float(self._errors[i][places[i]]))
            for i, menu in enumerate(self._menus)
        )
        shares = {name: self._share(name, picked) for name in self._total}
        error = sum(layer.error for layer in layers)
        plan = BudgetPlan(recipe.budget, shares["macs"], shares["params"], self._measure, error, layers)
        return replace(plan, latency=shares.get("latency"))

    def _chosen(self, recipe: Recipe) -> list[JointOption]:
        limits = recipe.budget.limits
        options = [menu.options for menu in self._joint]
        for name, share in limits.items():
            least = self._share(name, [min(own, key=lambda option: _cost(option, name)) for own in options])
            if least > share:
                raise OutOfReachError(name, share, least, recipe)
        costs = [np.array([[_cost(option, name) for name in limits] for option in own], float) for own in options]
        errors = [np.array([option.error for option in own]) for own in options]
        free = np.array([share * self._total[name] - self._fixed[name] for name, share in limits.items()])
        found = choose_options(costs, errors, free)
        if found is None:
            raise NotTogetherError(limits)
        return [own[place] for own, place in zip(options, found, strict=True)]

    def _share(self, name: str, picked: Sequence[JointOption]) -> float:
        return (self._fixed[name] + _sum(picked, name)) / self._total[name]


def _errors(menu: LayerMenu, evidence: Evidence | None) -> Values:
    """Return the error of every option of a menu."""
    target, layouts = menu.target, _layouts(menu)
    lost = weight_errors(target, layouts) if evidence is None else evidence.lost(target.names[0], layouts)
    return np.concatenate([[0.0], added_error(lost)])


def _cost(option: JointOption, name: str) -> int:
    return {"macs": option.macs, "params": option.parameters, "latency": option.nanoseconds}[name]


def _sum(options: Sequence[JointOption], name: str) -> int:
    return sum(_cost(option, name) for option in options)


def _layouts(menu: LayerMenu) -> list[Layout]:
    return [option.layout for option in menu.options if option.layout is not None]


def _planned(menu: LayerMenu, option: Option, error: float) -> PlannedLayer:
    return planned_layer(menu.target.names[0], option.layout, option.macs / menu.options[0].macs, error)
