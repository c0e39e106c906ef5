"""The job: menus, what their options lose, the best choice within the budget, and the recipe that says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from norton_plugin.budget.distortion import added_error, weight_errors
from norton_plugin.budget.menu import LayerMenu, Option, layer_menus
from norton_plugin.budget.sensitivity import LayerSensitivity, layer_sensitivities
from norton_plugin.budget.solve import Values, choose_options
from norton_plugin.budget.tied import JointMenu, JointOption, joint_menus
from norton_plugin.cost import ModelCost
from norton_plugin.errors import RecipeError
from norton_plugin.recipe import Budget, Recipe
from norton_plugin.surgery.layouts import Layout

_WORDS = {"macs": "MACs", "params": "parameters"}


@dataclass(frozen=True)
class PlannedLayer:
    """What a layer is to become.

    Attributes:
        name: Its first dotted name.
        level: "filter", "layer" or "spatial"; None leaves it dense.
        rank: R per filter, or per channel group where filters share components; None where it is dense.
        components: M of the layer, None where filters share nothing, or it is dense.
        macs: As a share of the dense layer's.
        error: As foretold, in the units of the plan.
    """

    name: str
    level: str | None
    rank: int | None
    components: int | None
    macs: float
    error: float


@dataclass(frozen=True)
class PlannedGroup:
    """Channels that are to be removed together.

    Attributes:
        root: Name of the layer that stands for the group.
        members: Layers whose outputs lose them.
        before: Channels before.
        after: Channels after.
        error: Divergence of the model's outputs without them, as measured, the layers that read them fitted to what is
            left.
    """

    root: str
    members: tuple[str, ...]
    before: int
    after: int
    error: float


@dataclass(frozen=True)
class BudgetPlan:
    """What was found for a budget.

    Attributes:
        budget: What was asked for.
        macs: MACs of the compressed model as a share of the dense one's.
        params: Its parameters, likewise.
        measure: What errors are: ``-log(1 - NMSE)`` of a layer's weight ("weights") or, with images, of its output
            ("outputs"): the sum is that of the share of the signal that passes all layers. Where groups are pruned
            too, the divergence of the model's outputs ("divergence").
        error: Sum over layers and groups, as foretold.
        layers: Every layer that might have been decomposed, in the model's order.
        groups: Groups that are pruned.
        phases: "decomposition", "pruning" or "hybrid".
        divergence: Of the outputs on held-back images, for each of these that was tried; the lowest was kept. Empty
            where only decomposition was asked for.
    """

    budget: Budget
    macs: float
    params: float
    measure: str
    error: float
    layers: tuple[PlannedLayer, ...]
    groups: tuple[PlannedGroup, ...] = ()
    phases: str = "decomposition"
    divergence: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, strings and numbers."""
        return asdict(self)

    def recipe(self, asked: Recipe) -> Recipe:
        """Return the recipe in which the sizes of all layers, and shares of groups, stand in place of the budget."""
        layers = {layer.name: _settings(layer) for layer in self.layers}
        decomposition = replace(asked.decomposition, ranks={}, layers=layers)
        pruning = asked.pruning
        if self.groups:
            keeps = {name: group.after / group.before for group in self.groups for name in group.members}
            pruning = replace(pruning, keeps={**pruning.keeps, **keeps}, round_to=1)  # counts are rounded already
        return replace(asked, decomposition=decomposition, pruning=pruning, budget=Budget())


def plan_budget(
    model: nn.Module,
    recipe: Recipe,
    cost: ModelCost,
    *,
    batches: Sequence[Any] | None = None,
    call: Callable[[nn.Module, Any], Any] | None = None,
) -> BudgetPlan:
    """Find the level and the size of every layer that lose least within the budget of a recipe.

    Args:
        model: Not changed.
        recipe: With a budget; its scope and levels hold.
        cost: Of the model.
        batches: Unlabelled images; with them errors are those of outputs, by their weight for the model's own.
        call: Runs the model on a batch; ``model(batch)`` by default.

    Raises:
        RecipeError: The budget cannot be met; the least that can be is said. Or a pattern matches nothing.
        SurgeryError: No layer can be decomposed.
        MissingExtraError: Both budgets are given, and scipy is not installed.
    """
    menus = layer_menus(model, recipe, cost)
    sensitive = None
    if batches:
        run, targets = call or (lambda own, batch: own(batch)), [menu.target for menu in menus]
        sensitive = layer_sensitivities(model, targets, batches, call=run, seed=recipe.calibration.seed)
    return plan_of(model, recipe, cost, menus, sensitive)


def plan_of(
    model: nn.Module,
    recipe: Recipe,
    cost: ModelCost,
    menus: Sequence[LayerMenu],
    sensitive: Sequence[LayerSensitivity] | None,
) -> BudgetPlan:
    """Choose from menus what ``plan_budget`` returns.

    Args:
        model: As of ``plan_budget``.
        recipe: Likewise.
        cost: Likewise.
        menus: Of the layers that may be decomposed.
        sensitive: What errors of each count; None where those of the weights are taken.

    Raises:
        RecipeError: The budget cannot be met; the least that can be is said.
        MissingExtraError: Both budgets are given, and scipy is not installed.
    """
    errors = [_errors(menu, None if sensitive is None else sensitive[i]) for i, menu in enumerate(menus)]
    limits = {name: share for name in _WORDS if (share := getattr(recipe.budget, name)) is not None}
    joint = joint_menus(model, menus, errors)
    whole = _Whole(joint, cost)
    picked = _chosen(joint, limits, whole, recipe)
    places = {
        member: place
        for menu, option in zip(joint, picked, strict=True)
        for member, place in zip(menu.members, option.places, strict=True)
    }
    layers = [_planned(menu, menu.options[places[i]], float(errors[i][places[i]])) for i, menu in enumerate(menus)]
    shares = {name: whole.share(name, picked) for name in _WORDS}
    error, measure = sum(each.error for each in layers), "weights" if sensitive is None else "outputs"
    return BudgetPlan(recipe.budget, shares["macs"], shares["params"], measure, error, tuple(layers))


def _errors(menu: LayerMenu, sensitive: LayerSensitivity | None) -> Values:
    """Return the error of every option of a menu."""
    lost = weight_errors(menu.target, _layouts(menu), None if sensitive is None else sensitive.seen())
    return np.concatenate([[0.0], added_error(lost)])


class _Whole:
    """The cost of the whole model, of which the menus are a part."""

    def __init__(self, menus: Sequence[JointMenu], cost: ModelCost) -> None:
        self.total = {"macs": cost.macs, "params": cost.parameters}
        dense = [menu.options[0] for menu in menus]
        self.fixed = {name: total - _sum(dense, name) for name, total in self.total.items()}

    def share(self, name: str, picked: Sequence[JointOption]) -> float:
        return (self.fixed[name] + _sum(picked, name)) / self.total[name]


def _chosen(menus: Sequence[JointMenu], limits: dict[str, float], whole: _Whole, recipe: Recipe) -> list[JointOption]:
    costs = [np.array([[_cost(option, name) for name in limits] for option in menu.options], float) for menu in menus]
    errors = [np.array([option.error for option in menu.options]) for menu in menus]
    free = np.array([share * whole.total[name] - whole.fixed[name] for name, share in limits.items()])
    for name, share in limits.items():
        least = whole.share(name, [min(menu.options, key=lambda option: _cost(option, name)) for menu in menus])
        if least > share:
            raise out_of_reach(name, share, least, recipe)
    found = choose_options(costs, errors, free)
    if found is None:
        raise RecipeError(
            f"budget.macs {limits['macs']:g} and budget.params {limits['params']:g} can be met one at a time, but not "
            "together; raise one of them"
        )
    return [menu.options[place] for menu, place in zip(menus, found, strict=True)]


def out_of_reach(name: str, share: float, least: float, recipe: Recipe) -> RecipeError:
    """Return what to say of a budget that cannot be met, and what may be done; nothing that the recipe does already.

    Args:
        name: ``"macs"`` or ``"params"``.
        share: What was asked for.
        least: What can be reached.
        recipe: Of the budget.
    """
    asked = recipe.decomposition
    ways = [
        ("name at least that", least < 1),
        ("try decomposition.level 'auto'", asked.level != "auto"),
        ("decompose Linear layers too (decomposition.linear)", not asked.linear),
        ("open more layers (scope)", bool(recipe.scope.include or recipe.scope.exclude)),
        ("prune as well (budget.prune, or pruning.keep in place of a budget)", not recipe.budget.prune),
    ]
    told = ", or ".join(words for words, holds in ways if holds)
    return RecipeError(
        f"budget.{name} is {share:g}, but the least that can be reached is {math.ceil(least * 1e4) / 1e4:g} of "
        f"the dense model's {_WORDS[name]}{'; ' if told else ''}{told}"
    )


def _cost(option: JointOption, name: str) -> int:
    return option.macs if name == "macs" else option.parameters


def _sum(options: Sequence[JointOption], name: str) -> int:
    return sum(_cost(option, name) for option in options)


def _layouts(menu: LayerMenu) -> list[Layout]:
    return [option.layout for option in menu.options if option.layout is not None]


def _planned(menu: LayerMenu, option: Option, error: float) -> PlannedLayer:
    return planned_layer(menu.target.names[0], option.layout, option.macs / menu.options[0].macs, error)


def planned_layer(name: str, layout: Layout | None, macs: float, error: float) -> PlannedLayer:
    """Return the record of a layer; ``macs`` as a share of the dense layer's."""
    if layout is None:
        return PlannedLayer(name, None, None, None, macs, error)
    return PlannedLayer(name, layout.level, layout.rank, layout.components, macs, error)


def _settings(layer: PlannedLayer) -> dict[str, Any]:
    """Return what a recipe says of a layer."""
    if layer.level is None:
        return {"rank": None}
    if layer.components is None:
        return {"level": layer.level, "rank": layer.rank}
    return {"level": layer.level, "components": layer.components}
