"""Sizes of layers and shares of channels from one budget, by measured divergences (docs/method.md, section 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from torch import nn

from norton_plugin.budget.distortion import added_error, weight_errors
from norton_plugin.budget.fronts import Front, either, front_of, together
from norton_plugin.budget.measured import MeasuredDivergence
from norton_plugin.budget.menu import layouts_of
from norton_plugin.budget.sensitivity import LayerSensitivity
from norton_plugin.budget.solve import choose_options
from norton_plugin.budget.units import Cut, PruningUnit
from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.cost import ModelCost
from norton_plugin.surgery.layouts import Layout
from norton_plugin.surgery.removed import RemovedChannels
from norton_plugin.surgery.targets import Target

# Share of a layer's output that is left out to measure what its errors cost the model.
_PROBE = 0.1
_NOTHING = RemovedChannels()


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


class JointMenus:
    """Fronts of all layers that may be decomposed and of all groups that may be pruned.

    Args:
        model: The dense model.
        targets: Layers that may be decomposed.
        sensitivities: Of their errors.
        units: Groups that may be pruned.
        measured: Tells what a change costs.
        cost: Of the model.
        budget: ``"macs"`` or ``"params"``.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        sensitivities: Sequence[LayerSensitivity],
        units: Sequence[PruningUnit],
        measured: MeasuredDivergence,
        *,
        cost: ModelCost,
        budget: str,
    ) -> None:
        self._modules = dict(model.named_modules())
        self._targets = {target.names[0]: target for target in targets}
        self._sensitivities = dict(zip(self._targets, sensitivities, strict=True))
        self._units, self._cost, self._budget = units, cost, budget
        self._weights = {name: self._weight_of(name, measured) for name in self._targets}
        self._fronts: dict[tuple[str, tuple[int, ...], tuple[int, ...], bool], Front] = {}

    def solve(self, share: float, *, decompose: bool) -> list[Choice] | float:
        """Return the best choices within a budget, or the least share that can be reached.

        Args:
            share: Of what the dense model costs.
            decompose: Whether layers may be decomposed; they are only pruned otherwise.
        """
        total = self._total(self._budget)
        touched = {name for unit in self._units for name in self._touched(unit)}
        single = [name for name in self._targets if name not in touched]
        fronts = [self._unit_front(unit, decompose) for unit in self._units]
        fronts += [self._layer_front(name, _NOTHING, decompose) for name in single]
        fixed = total - sum(self._dense(name, _NOTHING, self._budget) for name in [*touched, *single])
        found = choose_options(
            [front.costs[:, None] for front in fronts],
            [front.errors for front in fronts],
            np.array([share * total - fixed]),
        )
        if found is None:
            return float(fixed + sum(front.costs.min() for front in fronts)) / total
        picked = [front.choices[place] for front, place in zip(fronts, found, strict=True)]
        return [choice for choices in picked for choice in choices if isinstance(choice, Choice)]

    def share(self, name: str, choices: Sequence[Choice]) -> float:
        """Return what a model of these choices costs, as a share; ``name``: ``"macs"`` or ``"params"``."""
        total = self._total(name)
        layouts = {choice.name: choice.layout for choice in choices if choice.cut is None}
        saved = sum(
            self._dense(layer, _NOTHING, name) - self._costs(layer, gone, [layouts.get(layer)], name)[0]
            for layer, gone in self._lost(choices).items()
        )
        return float(total - saved) / total

    def layer_share(self, choice: Choice, choices: Sequence[Choice]) -> float:
        """Return the MACs of a layer among all choices, as a share of the dense layer's."""
        lost = self._lost(choices)[choice.name]
        macs = self._costs(choice.name, lost, [choice.layout], "macs")[0]
        return macs / self._dense(choice.name, _NOTHING, "macs")

    def group(self, choice: Choice) -> ChannelGroup:
        """Return the group of a choice that cuts one."""
        return next(unit.group for unit in self._units if unit.group.root == choice.name)

    def _lost(self, choices: Sequence[Choice]) -> dict[str, RemovedChannels]:
        """Return what each layer, and each norm of a group, loses by these choices."""
        cuts = {choice.name: choice.cut.removed for choice in choices if choice.cut is not None}
        lost: dict[str, RemovedChannels] = dict.fromkeys(self._targets, _NOTHING)
        for unit in self._units:
            gone = cuts.get(unit.group.root, {})
            lost |= {layer: gone.get(layer, _NOTHING) for layer in self._touched(unit)}
        return lost

    def _touched(self, unit: PruningUnit) -> list[str]:
        return list(dict.fromkeys(m.name for m in unit.group.members if m.name in self._modules))

    def _unit_front(self, unit: PruningUnit, decompose: bool) -> Front:
        fronts = []
        for cut in (None, *unit.cuts):
            chosen = Choice(unit.group.root, None, cut, 0.0 if cut is None else cut.divergence)
            own = front_of(np.zeros(1), np.array([chosen.error]), [() if cut is None else (chosen,)])
            lost: Mapping[str, RemovedChannels] = {} if cut is None else cut.removed
            layers = [self._layer_front(name, lost.get(name, _NOTHING), decompose) for name in self._touched(unit)]
            fronts.append(reduce(together, layers, own))
        return either(fronts)

    def _layer_front(self, name: str, lost: RemovedChannels, decompose: bool) -> Front:
        """Return what a layer may become that lost these channels."""
        key = name, lost.outputs, lost.inputs, decompose
        if key not in self._fronts:
            layouts: list[Layout | None] = [None]
            errors = np.zeros(1)
            target = self._targets.get(name)
            if target is not None and decompose:
                smaller = self._cut_target(target, lost)
                found = layouts_of(smaller)
                layouts += found
                if found:
                    outputs, inputs = (_kept(lost, which, target) for which in ("outputs", "inputs"))
                    seen = self._sensitivities[name].seen(outputs, inputs)
                    nmse = weight_errors(smaller, found, seen)
                    errors = np.concatenate([errors, added_error(nmse) * self._weights[name]])
            costs = np.array(self._costs(name, lost, layouts, self._budget), float)
            choices = [
                (Choice(name, layout, None, float(error)),) if target is not None else ()
                for layout, error in zip(layouts, errors, strict=True)
            ]
            self._fronts[key] = front_of(costs, errors, choices)
        return self._fronts[key]

    def _total(self, budget: str) -> int:
        return self._cost.macs if budget == "macs" else self._cost.parameters

    def _costs(self, name: str, lost: RemovedChannels, layouts: Sequence[Layout | None], budget: str) -> list[int]:
        """Return what a layer costs in each layout."""
        dense = self._dense(name, lost, budget)
        target = self._targets.get(name)
        if target is None:
            return [dense] * len(layouts)
        shape = self._cut_target(target, lost).shape
        if budget == "params":
            return [dense if layout is None else shape.parameters(layout) for layout in layouts]
        return [dense if layout is None else -(-dense * shape.macs(layout) // shape.dense_macs) for layout in layouts]

    def _dense(self, name: str, lost: RemovedChannels, budget: str) -> int:
        """Return what a layer, or a norm, costs as it is, without the channels that it lost."""
        if budget == "macs":
            names = self._targets[name].names if name in self._targets else (name,)
            whole = sum(self._cost.layer_macs.get(each, 0) for each in names)
        elif name in self._targets:
            whole = self._targets[name].shape.dense_parameters
        else:
            whole = sum(p.numel() for p in self._modules[name].parameters(recurse=False))
        weight = getattr(self._modules[name], "weight", None)
        if weight is None or not (lost.outputs or lost.inputs):
            return whole
        kept = (len(weight) - len(lost.outputs)) / len(weight)
        if weight.dim() > 1:
            kept *= (weight.shape[1] - len(lost.inputs)) / weight.shape[1]
        return round(whole * kept)

    @staticmethod
    def _cut_target(target: Target, lost: RemovedChannels) -> Target:
        shape = target.shape
        filters, channels = shape.filters - len(lost.outputs), shape.channels - len(lost.inputs)
        return replace(target, shape=replace(shape, filters=filters, channels=channels))

    def _weight_of(self, name: str, measured: MeasuredDivergence) -> float:
        """Return the divergence that a unit of a layer's error makes, from one measured error."""
        weight, lost = self._sensitivities[name].projected(_PROBE)
        if not lost or not measured.settable(name):
            return 1.0
        shift = measured.moments.shift(name, weight)
        return max(measured.of({name: (weight, shift)}), 1e-9) / float(added_error(np.array(lost)))


def _kept(lost: RemovedChannels, which: str, target: Target) -> list[int] | None:
    if which == "outputs":
        return lost.kept_outputs(target.shape.filters) if lost.outputs else None
    return lost.kept_inputs(target.shape.channels) if lost.inputs else None
