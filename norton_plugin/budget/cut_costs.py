"""What layers cost whose groups lose channels: MACs, parameters, and time where it is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from norton_plugin.budget.tied import shared_weights
from norton_plugin.budget.units import Cut, PruningUnit
from norton_plugin.channels.layers import filter_dim_of, weight_of
from norton_plugin.cost import ModelCost
from norton_plugin.latency import LayerClock
from norton_plugin.surgery.layouts import Layout
from norton_plugin.surgery.removed import RemovedChannels
from norton_plugin.surgery.targets import Target

NOTHING = RemovedChannels()


class CutCosts:
    """Costs of the layers of one model, by the name of a budget: ``"macs"``, ``"params"`` or ``"latency"``.

    Args:
        model: The dense model.
        targets: Layers that may be decomposed, by their first dotted names.
        units: Groups that may be pruned.
        cost: Of the model.
        clock: Tells how long layers take; None where no budget names milliseconds.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Target],
        units: Sequence[PruningUnit],
        cost: ModelCost,
        clock: LayerClock | None,
    ) -> None:
        self._modules = dict(model.named_modules())
        self._shared = shared_weights(model)
        self._targets, self._units, self._cost, self._clock = targets, units, cost, clock

    @property
    def budgets(self) -> tuple[str, ...]:
        """Budgets whose costs are known."""
        return ("macs", "params") if self._clock is None else ("macs", "params", "latency")

    def total(self, budget: str) -> int:
        """Return what the dense model costs."""
        if budget == "latency" and self._clock is not None:
            return self._clock.whole
        return self._cost.macs if budget == "macs" else self._cost.parameters

    def touched(self, unit: PruningUnit) -> list[str]:
        """Return the layers and norms whose cost depends on how many channels a group keeps."""
        return list(dict.fromkeys(m.name for m in unit.group.members if m.name in self._modules))

    def share(self, budget: str, cuts: Iterable[tuple[str, Cut]], layouts: Mapping[str, Layout | None]) -> float:
        """Return what a model costs, as a share of the dense one.

        Args:
            budget: Which cost.
            cuts: Root of each group that is cut, and how.
            layouts: What layers become, by name.
        """
        saved = sum(
            self.dense(layer, NOTHING, budget) - self.costs(layer, gone, [layouts.get(layer)], budget)[0]
            for layer, gone in self.lost(cuts).items()
        )
        if budget == "params":
            saved += sum(
                weight.numel()
                for weight, names in self._shared.items()
                if all(layouts.get(name) is not None for name in names)
            )
        return float(self.total(budget) - saved) / self.total(budget)

    def lost(self, cuts: Iterable[tuple[str, Cut]]) -> dict[str, RemovedChannels]:
        """Return what each layer, and each norm of a group, loses by cuts of groups."""
        gone_by = {root: cut.removed for root, cut in cuts}
        lost: dict[str, RemovedChannels] = dict.fromkeys(self._targets, NOTHING)
        for unit in self._units:
            gone = gone_by.get(unit.group.root, {})
            lost |= {layer: gone.get(layer, NOTHING) for layer in self.touched(unit)}
        return lost

    def costs(self, name: str, lost: RemovedChannels, layouts: Sequence[Layout | None], budget: str) -> list[int]:
        """Return what a layer costs in each layout."""
        if budget == "latency":
            return self._nanoseconds(name, lost, layouts)
        dense = self.dense(name, lost, budget)
        target = self._targets.get(name)
        if target is None:
            return [dense] * len(layouts)
        shape = cut_target(target, lost).shape
        if budget == "params":
            return [dense if layout is None else shape.parameters(layout) for layout in layouts]
        return [dense if layout is None else -(-dense * shape.macs(layout) // shape.dense_macs) for layout in layouts]

    def dense(self, name: str, lost: RemovedChannels, budget: str) -> int:
        """Return what a layer, or a norm, costs as it is, without the channels that it lost.

        A weight that several layers hold is no parameter of any of them: it goes when none of them is left, not before.
        """
        if budget == "latency":
            return self._nanoseconds(name, lost, [None])[0]
        if budget == "macs":
            names = self._targets[name].names if name in self._targets else (name,)
            whole = sum(self._cost.layer_macs.get(each, 0) for each in names)
        elif name in self._targets:
            whole = self._targets[name].shape.dense_parameters
        else:
            whole = sum(p.numel() for p in self._modules[name].parameters(recurse=False))
        weight = weight_of(self._modules[name])
        held = self._modules[name]._parameters.get("weight")
        if budget == "params" and held in self._shared:
            whole -= held.numel()
        if weight is None or not (lost.outputs or lost.inputs):
            return whole
        if weight.dim() < 2:
            return round(whole * (len(weight) - len(lost.outputs)) / len(weight))
        filters, channels = _filters_and_channels(self._modules[name], weight)
        kept = (filters - len(lost.outputs)) * (channels - len(lost.inputs)) / (filters * channels)
        return round(whole * kept)

    def _nanoseconds(self, name: str, lost: RemovedChannels, layouts: Sequence[Layout | None]) -> list[int]:
        weight = weight_of(self._modules[name])
        if self._clock is None or weight is None or weight.dim() < 2:
            return [0] * len(layouts)
        filters, channels = _filters_and_channels(self._modules[name], weight)
        kept = {"filters": filters - len(lost.outputs), "channels": channels - len(lost.inputs)}
        return self._clock.nanoseconds(name, layouts, **kept)


def _filters_and_channels(module: nn.Module, weight: Tensor) -> tuple[int, int]:
    """Return the lengths of a weight along its filters and its channels: a transposed convolution has them swapped."""
    filter_dim = filter_dim_of(module)
    return weight.shape[filter_dim], weight.shape[1 - filter_dim]


def cut_target(target: Target, lost: RemovedChannels) -> Target:
    """Return a layer without the channels that it lost."""
    shape = target.shape
    filters, channels = shape.filters - len(lost.outputs), shape.channels - len(lost.inputs)
    return replace(target, shape=replace(shape, filters=filters, channels=channels))
