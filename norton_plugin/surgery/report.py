"""What surgery did, layer by layer: plain records, printed by somebody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from norton_plugin.pabs import DistanceExcerpt
from norton_plugin.reasons import Cause
from norton_plugin.surgery.removed import RemovedChannels
from norton_plugin.surgery.untied import UntiedLayers

# The name that stands for all layers where the model could not be traced as a whole.
WHOLE = "(whole model)"


@dataclass(frozen=True)
class Skipped:
    """Something left as it was.

    Attributes:
        name: Dotted name of the layer (or of the root layer of a channel group).
        cause: Why.
    """

    name: str
    cause: Cause

    @property
    def code(self) -> str:
        """The reason's code."""
        return self.cause.code

    @property
    def reason(self) -> str:
        """The reason in words for a user."""
        return self.cause.text

    def to_dict(self) -> dict[str, str]:
        """Return the entry as JSON holds it."""
        return {"name": self.name, "code": self.code, "reason": self.reason}


@dataclass(frozen=True)
class DecomposedLayer:
    """One layer that became a CPDBlock, a SpatialSVDBlock or a CPDLinear.

    Attributes:
        names: Every dotted name of the module (more than one where it is shared).
        rank: R, components per filter, or per cluster where filters share them.
        nmse_mean: Mean over the filters of ||W - W^||^2 / ||W||^2, in [0, 1].
        nmse_worst: The worst filter's.
        fallback_filters: Filters whose ALS did not converge and that keep a truncated HOSVD.
        error: Relative difference of its outputs from those of the layer with the rebuilt weight, None where it was
            not checked.
        level: Which filters share components: "filter" (none), "cluster", "layer" or "spatial".
        clusters: K, None where filters share nothing.
        components: M, all components of the layer, None where filters share nothing.
        nmse_layer: ||W - W^||^2 / ||W||^2 of the whole layer, in [0, 1].
        largest_component: Norm of the largest component over that of the weight of its cluster; far above 1 where
            components cancel each other. None where filters share nothing, and for a spatial SVD.
    """

    names: tuple[str, ...]
    rank: int
    nmse_mean: float
    nmse_worst: float
    fallback_filters: int
    error: float | None = None
    level: str = "filter"
    clusters: int | None = None
    components: int | None = None
    nmse_layer: float | None = None
    largest_component: float | None = None


@dataclass(frozen=True)
class DecompositionReport:
    """Result of ``decompose_``.

    Attributes:
        layers: Decomposed layers in the model's order.
        skipped: All other convolutions, and blocks that were there before, each with its reason.
        verified: Whether the blocks were compared with the convolutions they replace.
        verify_seconds: What that comparison cost.
        untied: Layers that held one parameter, of which some have factors of their own now.
    """

    layers: tuple[DecomposedLayer, ...]
    skipped: tuple[Skipped, ...]
    verified: bool = False
    verify_seconds: float = 0.0
    untied: tuple[UntiedLayers, ...] = ()

    @property
    def largest_error(self) -> float | None:
        """Largest relative error of a block; None where nothing was compared."""
        return max((layer.error for layer in self.layers if layer.error is not None), default=None)


@dataclass(frozen=True)
class PrunedGroup:
    """Channels removed together.

    Attributes:
        root: Name of the layer that stands for the group.
        members: Names of all layers whose outputs lost these channels.
        before: Channels before.
        after: Channels after.
        keep: Share asked for, in (0, 1].
        notes: Factors that span their whole space, and so said nothing about distances.
        error: Relative output error against the masked model, None where it was not checked.
        distances: Between the filters that resemble each other most, of the first of the group's equal parts; in
            units without name, each layer's divided by its mean and added up. None where a user's function ranked.
    """

    root: str
    members: tuple[str, ...]
    before: int
    after: int
    keep: float
    notes: tuple[str, ...] = ()
    error: float | None = None
    distances: DistanceExcerpt | None = None


@dataclass(frozen=True)
class PruningReport:
    """Result of ``prune_``.

    Attributes:
        groups: Pruned groups in the order of the graph.
        skipped: Groups left whole, each with its reason.
        verified: Whether the groups were compared with the masked model.
        verify_seconds: What that comparison cost.
        rule_failures: Rules of the trace that raised an exception: mistakes of this package.
        removed: What each module lost, by its first dotted name.
    """

    groups: tuple[PrunedGroup, ...]
    skipped: tuple[Skipped, ...]
    verified: bool = False
    verify_seconds: float = 0.0
    rule_failures: tuple[Cause, ...] = ()
    removed: Mapping[str, RemovedChannels] = field(default_factory=dict)

    @property
    def largest_error(self) -> float | None:
        """Largest relative error against the masked model; None where nothing was compared."""
        return max((group.error for group in self.groups if group.error is not None), default=None)


def blocking(skipped: Iterable[Skipped]) -> list[Skipped]:
    """Return those left for a reason that a user may want to remove: they keep a model from "full"."""
    return [entry for entry in skipped if entry.cause.blocks]


def summary(skipped: Iterable[Skipped]) -> str:
    """Return the reasons in one line, the most frequent first."""
    counts = Counter(entry.reason for entry in skipped)
    return "; ".join(f"{reason} ({count} x)" if count > 1 else reason for reason, count in counts.most_common())
