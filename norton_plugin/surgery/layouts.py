"""What a layer can become for what is asked of it: level, clusters and components, within what the dense layer costs.

Sizes are compared by exact MACs: at stride 2 the pointwise step runs before the stride and the mix after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from norton_plugin.blocks import ConvCost, conv_cost, coupled_cost, cpd_cost, spatial_cost
from norton_plugin.cpd import full_components, full_spatial_rank
from norton_plugin.errors import RecipeError
from norton_plugin.reasons import Cause, Reason
from norton_plugin.recipe import LayerRequest

Size = tuple[int, ...]
LayoutLevel = Literal["filter", "cluster", "layer", "spatial"]
# Convolutions of widths that fill the vector registers are up to 1.5 times faster (docs/results, levels).
_LANES = 16
_SPARED = 0.07  # share of the components that may be left out for it


@dataclass(frozen=True)
class LayerShape:
    """What decides the cost of a layer.

    Attributes:
        filters: N.
        channels: C, the channels that one filter sees.
        kernel_size: (Kh, Kw), or the lengths of another number of axes; the sizes of maps alike.
        groups: Channel groups.
        input_size: (Hi, Wi), or the stride where it is not known.
        output_size: (Ho, Wo), ones where it is not known.
    """

    filters: int
    channels: int
    kernel_size: Size
    groups: int = 1
    input_size: Size = (1, 1)
    output_size: Size = (1, 1)

    @property
    def planar(self) -> bool:
        """Whether the kernel has rows and columns that a spatial SVD can separate."""
        return len(self.kernel_size) == 2 and not self.pointwise

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is 1x1."""
        return max(self.kernel_size) == 1

    @property
    def dense_macs(self) -> int:
        """MACs of the layer as it is."""
        return conv_cost(self.filters, self.channels, self.kernel_size, output_size=self.output_size).macs

    @property
    def dense_parameters(self) -> int:
        """Numbers in the layer's weight as it is."""
        return conv_cost(self.filters, self.channels, self.kernel_size).parameters

    def macs(self, layout: Layout) -> int:
        """MACs of the layer in a layout."""
        return self._cost(layout.clusters, layout.rank, spatial=layout.level == "spatial").macs

    def parameters(self, layout: Layout) -> int:
        """Numbers in the factors of a layout, the bias left out."""
        return self._cost(layout.clusters, layout.rank, spatial=layout.level == "spatial").parameters

    def highest_rank(self, clusters: int | None, macs: float, *, spatial: bool = False) -> int:
        """Return the highest rank, per filter or per cluster, that costs no more than so many MACs; 0 if none.

        Args:
            clusters: K, None at the level "filter".
            macs: Most that it may cost.
            spatial: Whether it is a spatial SVD, of as many clusters as groups.
        """
        return int(macs // self._cost(clusters, 1, spatial=spatial).macs)

    def full_rank(self, clusters: int | None, *, spatial: bool = False) -> int:
        """Return the rank, per filter or per cluster, at which the factorisation is exact; see ``highest_rank``."""
        if clusters is None:
            return math.prod(self.kernel_size)
        filters = -(-self.filters // clusters)
        if spatial:
            return full_spatial_rank(filters, self.channels, (self.kernel_size[0], self.kernel_size[1]))
        return full_components(filters, self.channels, self.kernel_size)

    def _cost(self, clusters: int | None, rank: int, *, spatial: bool) -> ConvCost:
        sizes = {"input_size": self.input_size, "output_size": self.output_size}
        if clusters is None:
            return cpd_cost(self.filters, self.channels, self.kernel_size, rank, **sizes)
        components = clusters * rank
        if spatial:
            return spatial_cost(self.filters, self.channels, self.kernel_size, components, groups=self.groups, **sizes)
        return coupled_cost(self.filters, self.channels, self.kernel_size, components, clusters=clusters, **sizes)


@dataclass(frozen=True)
class Layout:
    """One way to decompose a layer.

    Attributes:
        level: Which filters share components, and of what kind these are.
        clusters: K, None at the level "filter", the channel groups at the levels "layer" and "spatial".
        rank: R, components per filter or per cluster.
    """

    level: LayoutLevel
    clusters: int | None
    rank: int

    @property
    def components(self) -> int | None:
        """M of the layer, None at the level "filter"."""
        return None if self.clusters is None else self.clusters * self.rank

    @property
    def kind(self) -> str:
        """All but the rank, in words: ``filter``, ``layer 1``."""
        return self.level if self.clusters is None else f"{self.level} {self.clusters}"


def layouts_for(shape: LayerShape, request: LayerRequest, *, name: str, more_macs: bool) -> tuple[Layout, ...] | Cause:
    """Return the layouts that satisfy a request: one, or for level "auto" one per level at equal MACs.

    Args:
        shape: Of the layer.
        request: With a fixed rank, components or share.
        name: Of the layer, for messages.
        more_macs: Whether the result may cost more than the dense layer.

    Returns:
        The layouts, or why there is none.

    Raises:
        RecipeError: More components are asked for than the layer can have.
    """
    found: list[Layout] = []
    cause: Cause | None = None
    for level, clusters in _levels(shape, request):
        if clusters is not None and clusters > shape.filters:
            cause = cause or Reason.TOO_MANY_CLUSTERS.because(clusters=clusters, filters=shape.filters)
            continue
        outcome = _layout(shape, request, level, clusters, name=name, more_macs=more_macs)
        if isinstance(outcome, Layout):
            found.append(outcome)
        else:
            cause = cause or outcome
    return tuple(found) or cause or Reason.NO_RANK.because()


def highest_layouts(shape: LayerShape, request: LayerRequest) -> tuple[Layout, ...]:
    """Return the largest layout of each level asked for that still saves MACs; none where none does."""
    found = []
    for level, clusters in _levels(shape, request):
        if clusters is None or clusters <= shape.filters:
            spatial = level == "spatial"
            limit = shape.highest_rank(clusters, shape.dense_macs - 1, spatial=spatial)
            if rank := min(limit, shape.full_rank(clusters, spatial=spatial)):
                found.append(Layout(level, clusters, rank))
    return tuple(found)


def _levels(shape: LayerShape, request: LayerRequest) -> Iterator[tuple[LayoutLevel, int | None]]:
    """Each level that is asked for, with its number of clusters."""
    wanted = ("filter", "cluster", "layer", "spatial") if request.level == "auto" else (request.level,)
    for level in wanted:
        # Of a 1x1 kernel, both are a truncated SVD, but the layer level strides first.
        if level == "spatial" and not shape.planar:
            if request.level != "auto":
                yield "layer", shape.groups
            continue
        if level == "filter" and not shape.pointwise:
            yield "filter", None
        elif level == "layer":
            yield "layer", shape.groups
        elif level == "spatial":
            yield "spatial", shape.groups
        elif level == "cluster" and request.clusters is not None:
            yield "cluster", shape.groups * request.clusters


def _layout(
    shape: LayerShape,
    request: LayerRequest,
    level: LayoutLevel,
    clusters: int | None,
    *,
    name: str,
    more_macs: bool,
) -> Layout | Cause:
    kind = {"spatial": level == "spatial"}
    full, limit = shape.full_rank(clusters, **kind), shape.highest_rank(clusters, shape.dense_macs - 1, **kind)
    if request.components is not None and clusters is not None:
        if request.components > full * clusters:
            raise RecipeError(
                f"{request.components} components are asked for {name}, which is exact at {full * clusters}; lower "
                "decomposition.components, or give this layer a number of its own in decomposition.layers"
            )
        rank = request.components // clusters
        if rank == 0:
            return Reason.TOO_FEW_COMPONENTS.because(components=request.components, clusters=clusters)
        if rank > limit and not more_macs:
            return Reason.TOO_MANY_COMPONENTS.because(components=rank * clusters, limit=limit * clusters)
        return Layout(level, clusters, rank)
    if request.share is not None:
        rank = min(shape.highest_rank(clusters, request.share * shape.dense_macs, **kind), full)
        return (
            Layout(level, clusters, rank)
            if rank
            else Reason.SHARE_TOO_SMALL.because(
                share=request.share, least=shape.macs(Layout(level, clusters, 1)) / shape.dense_macs
            )
        )
    wanted = int(request.rank or 0)
    if clusters is None:
        if wanted > min(limit, full) and not more_macs:
            return Reason.RANK_TOO_HIGH.because(rank=wanted, limit=min(limit, full))
        return Layout(level, clusters, min(wanted, full))
    if shape.pointwise:
        return Reason.KERNEL_1X1.because()
    limit = shape.highest_rank(None, shape.dense_macs - 1)
    if wanted > limit and not more_macs:
        return Reason.RANK_TOO_HIGH.because(rank=wanted, limit=limit)
    rank = shape.highest_rank(clusters, shape.macs(Layout("filter", None, wanted)), **kind)
    rank = full if rank >= full else filling_lanes(rank, clusters)
    return Layout(level, clusters, rank) if rank else Reason.RANK_TOO_LOW.because(rank=wanted)


def filling_lanes(rank: int, clusters: int) -> int:
    """Lower a rank so that all components together fill whole vector lanes, where few of them are lost by it.

    Args:
        rank: Per cluster.
        clusters: K.
    """
    step = _LANES // math.gcd(_LANES, clusters)
    lower = rank // step * step
    return lower if rank - lower <= _SPARED * rank else rank
