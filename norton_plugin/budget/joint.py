"""Sizes of layers and shares of channels from budgets, by measured divergences (docs/method.md, section 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from norton_plugin.budget.cut_costs import NOTHING, CutCosts, cut_target
from norton_plugin.budget.distortion import added_error
from norton_plugin.budget.evidence import Evidence
from norton_plugin.budget.fronts import Front, either, front_of, together
from norton_plugin.budget.measured import MeasuredDivergence
from norton_plugin.budget.menu import layouts_of
from norton_plugin.budget.nested import Branch, Menu, choose_nested, undominated
from norton_plugin.budget.reach import NotTogetherError, OutOfReachError
from norton_plugin.budget.solve import Values, choose_options
from norton_plugin.budget.units import Cut, PruningUnit
from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.layouts import Layout
from norton_plugin.surgery.removed import RemovedChannels


@dataclass(frozen=True)
class Choice:
    """What was chosen for one layer or one group.

    Attributes:
        name: First dotted name of the layer, or the root of the group.
        layout: Of a layer; None leaves it dense.
        cut: Of a group.
        error: As foretold for the layer, or as measured for the cut.
    """

    name: str
    layout: Layout | None
    cut: Cut | None
    error: float


class _Options(NamedTuple):
    """What a layer may become: the layouts, and the error of each, (len(layouts),)."""

    layouts: list[Layout | None]
    errors: Values


class _Cutting(NamedTuple):
    """One cut of a group, None for none, and the menu of each layer that it touches with what its options stand for."""

    choice: Choice | None
    menus: list[tuple[Menu, list[Choice]]]


class JointMenus:
    """Options of all layers that may be decomposed, and cuts of all groups that may be pruned.

    Args:
        evidence: Tells what errors of layers cost.
        units: Groups that may be pruned.
        measured: Returns what tells the cost of a change, where the evidence lacks it.
        costs: Of layers.
    """

    def __init__(
        self,
        evidence: Evidence,
        units: Sequence[PruningUnit],
        measured: Callable[[], MeasuredDivergence],
        *,
        costs: CutCosts,
    ) -> None:
        self._evidence, self._targets = evidence, evidence.targets
        self._units, self._costs = units, costs
        self._weights = {name: evidence.divergence(name, measured) for name in self._targets}
        self._options: dict[tuple[str, RemovedChannels], _Options] = {}
        self._fronts: dict[tuple[str, RemovedChannels, bool, str], Front] = {}

    def solve(self, recipe: Recipe, *, decompose: bool) -> list[Choice]:
        """Return the best choices within the budget of a recipe.

        Args:
            recipe: With the budget.
            decompose: Whether layers may be decomposed; they are only pruned otherwise.

        Raises:
            OutOfReachError: One budget cannot be met.
            RecipeError: They cannot be met together.
            MissingExtraError: There are several, and scipy is not installed.
        """
        limits = recipe.budget.limits
        for budget, share in limits.items():
            least = self._least(budget, decompose)
            if least > share:
                raise OutOfReachError(budget, share, least, recipe)
        one = next(iter(limits.items())) if len(limits) == 1 else None
        found = self._several(limits, decompose) if one is None else self._one(one, decompose)
        if found is None:
            raise NotTogetherError(limits)
        return found

    @property
    def budgets(self) -> tuple[str, ...]:
        """Budgets whose costs are known."""
        return self._costs.budgets

    def share(self, budget: str, choices: Sequence[Choice]) -> float:
        """Return what a model of these choices costs, as a share of the dense one's."""
        return self._costs.share(budget, *_taken_apart(choices))

    def layer_share(self, choice: Choice, choices: Sequence[Choice]) -> float:
        """Return the MACs of a layer among all choices, as a share of the dense layer's."""
        lost = self._costs.lost(_taken_apart(choices)[0])[choice.name]
        macs = self._costs.costs(choice.name, lost, [choice.layout], "macs")[0]
        return macs / self._costs.dense(choice.name, NOTHING, "macs")

    def group(self, choice: Choice) -> ChannelGroup:
        """Return the group of a choice that cuts one."""
        return next(unit.group for unit in self._units if unit.group.root == choice.name)

    def _one(self, limit: tuple[str, float], decompose: bool) -> list[Choice] | None:
        """Solve for one budget, by fronts of single groups and layers."""
        budget, share = limit
        fronts = self._all_fronts(budget, decompose)
        free = np.array([share * self._costs.total(budget) - self._fixed(budget)])
        found = choose_options([front.costs[:, None] for front in fronts], [front.errors for front in fronts], free)
        if found is None:
            return None
        picked = [front.choices[place] for front, place in zip(fronts, found, strict=True)]
        return [choice for choices in picked for choice in choices if isinstance(choice, Choice)]

    def _several(self, limits: Mapping[str, float], decompose: bool) -> list[Choice] | None:
        """Solve for several budgets at once."""
        free = np.array([share * self._costs.total(name) - self._fixed(name) for name, share in limits.items()])
        cuttings = [
            [self._cutting(unit, cut, tuple(limits), decompose) for cut in (None, *unit.cuts)] for unit in self._units
        ]
        cuttings += [[_Cutting(None, [self._menu(n, NOTHING, tuple(limits), decompose)])] for n in self._single()]
        trees = [
            [Branch(each.choice.error if each.choice else 0.0, tuple(menu for menu, _ in each.menus)) for each in tree]
            for tree in cuttings
        ]
        found = choose_nested(trees, free)
        if found is None:
            return None
        picked = []
        for tree, (place, options) in zip(cuttings, found, strict=True):
            choice, menus = tree[place]
            layers = [choices[option] for (_, choices), option in zip(menus, options, strict=True)]
            picked += ([] if choice is None else [choice]) + [each for each in layers if each.name in self._targets]
        return picked

    def _cutting(self, unit: PruningUnit, cut: Cut | None, budgets: Sequence[str], decompose: bool) -> _Cutting:
        choice = None if cut is None else Choice(unit.group.root, None, cut, cut.divergence)
        names = self._costs.touched(unit)
        return _Cutting(choice, [self._menu(name, _lost(cut, name), budgets, decompose) for name in names])

    def _menu(
        self, name: str, lost: RemovedChannels, budgets: Sequence[str], decompose: bool
    ) -> tuple[Menu, list[Choice]]:
        """Return the options of a layer that no other one beats, and what they stand for."""
        layouts, errors = self._options_of(name, lost, decompose)
        costs = np.array([self._costs.costs(name, lost, layouts, each) for each in budgets], float).T
        kept = undominated(costs, errors)
        return Menu(costs[kept], errors[kept]), [Choice(name, layouts[i], None, float(errors[i])) for i in kept]

    def _least(self, budget: str, decompose: bool) -> float:
        fronts = self._all_fronts(budget, decompose)
        least = self._fixed(budget) + sum(front.costs.min() for front in fronts)
        return float(least) / self._costs.total(budget)

    def _fixed(self, budget: str) -> int:
        """Return the cost of all that no choice changes."""
        touched = {name for unit in self._units for name in self._costs.touched(unit)}
        changing = [*touched, *self._single()]
        return self._costs.total(budget) - sum(self._costs.dense(name, NOTHING, budget) for name in changing)

    def _single(self) -> list[str]:
        """Return the layers that may be decomposed and that no group touches."""
        touched = {name for unit in self._units for name in self._costs.touched(unit)}
        return [name for name in self._targets if name not in touched]

    def _all_fronts(self, budget: str, decompose: bool) -> list[Front]:
        fronts = [self._unit_front(unit, decompose, budget) for unit in self._units]
        return fronts + [self._layer_front(name, NOTHING, decompose, budget) for name in self._single()]

    def _unit_front(self, unit: PruningUnit, decompose: bool, budget: str) -> Front:
        fronts = []
        for cut in (None, *unit.cuts):
            chosen = Choice(unit.group.root, None, cut, 0.0 if cut is None else cut.divergence)
            own = front_of(np.zeros(1), np.array([chosen.error]), [() if cut is None else (chosen,)])
            names = self._costs.touched(unit)
            layers = [self._layer_front(name, _lost(cut, name), decompose, budget) for name in names]
            fronts.append(reduce(together, layers, own))
        return either(fronts)

    def _layer_front(self, name: str, lost: RemovedChannels, decompose: bool, budget: str) -> Front:
        """Return what a layer may become that lost these channels, at the best trade-offs with one cost."""
        key = name, lost, decompose, budget
        if key not in self._fronts:
            layouts, errors = self._options_of(name, lost, decompose)
            costs = np.array(self._costs.costs(name, lost, layouts, budget), float)
            choices = [
                (Choice(name, layout, None, float(error)),) if name in self._targets else ()
                for layout, error in zip(layouts, errors, strict=True)
            ]
            self._fronts[key] = front_of(costs, errors, choices)
        return self._fronts[key]

    def _options_of(self, name: str, lost: RemovedChannels, decompose: bool) -> _Options:
        target = self._targets.get(name)
        if target is None or not decompose:
            return _Options([None], np.zeros(1))
        if (name, lost) not in self._options:
            found = layouts_of(cut_target(target, lost))
            errors = np.zeros(1)
            if found:
                shares = self._evidence.lost(name, found, lost)
                errors = np.concatenate([errors, added_error(shares) * self._weights[name]])
            self._options[name, lost] = _Options([None, *found], errors)
        return self._options[name, lost]


def _taken_apart(choices: Sequence[Choice]) -> tuple[list[tuple[str, Cut]], dict[str, Layout | None]]:
    """Return the cuts of groups and the layouts of layers among choices."""
    cuts = [(choice.name, choice.cut) for choice in choices if choice.cut is not None]
    return cuts, {choice.name: choice.layout for choice in choices if choice.cut is None}


def _lost(cut: Cut | None, name: str) -> RemovedChannels:
    return NOTHING if cut is None else cut.removed.get(name, NOTHING)
