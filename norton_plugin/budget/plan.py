"""What was found for a budget, and the recipe that says it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from norton_plugin.recipe import Budget, Recipe
from norton_plugin.surgery.layouts import Layout


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
class Milliseconds:
    """What a plan takes on this device, or on that of a table that was given.

    Attributes:
        dense: Of the dense model as it is delivered, its norms folded.
        predicted: Of the compressed one, by the measured times of its layers.
        measured: Of the compressed one as it is delivered, timed in turns with the dense one, which then took
            ``dense``; None where a table was given.
        plans: How many plans were measured until one met the budget.
    """

    dense: float
    predicted: float
    measured: float | None = None
    plans: int = 0

    @property
    def share(self) -> float:
        """Of the dense model's time, as measured, or as predicted where nothing was measured."""
        return (self.predicted if self.measured is None else self.measured) / self.dense


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
        phases: "decomposition", "pruning", "even pruning" or "hybrid".
        divergence: Of the outputs on held-back images, for each of these that was tried; the lowest was kept. Empty
            where only decomposition was asked for.
        latency: Its milliseconds, likewise, as the times of its layers foretell; None without a budget of them.
        milliseconds: These times; None without a budget of them.
        sensitivities: Whether those of an earlier compression were taken, in words; empty where none were named.
        missed: Phases by which the budget could not be met, where several were tried.
        keep: Of even pruning: the share of the channels asked of every group that may be pruned, before rounding; 1
            where each group has its own (``groups``), or none is pruned.
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
    latency: float | None = None
    milliseconds: Milliseconds | None = None
    sensitivities: str = ""
    missed: tuple[str, ...] = ()
    keep: float = 1.0

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
        elif self.keep < 1:
            pruning = replace(pruning, keep=self.keep, global_ranking=False)
        return replace(asked, decomposition=decomposition, pruning=pruning, budget=Budget())


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
