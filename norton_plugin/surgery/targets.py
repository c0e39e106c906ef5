"""Which layers of a model are decomposed and what may become of each; the others with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.channels.expert_layers import mixes_experts
from norton_plugin.modules.swap import names_by_identity
from norton_plugin.reasons import Cause, Reason
from norton_plugin.recipe import Decomposition, LayerRequest, Scope
from norton_plugin.surgery.contract import (
    ConvContract,
    LinearContract,
    check_finite,
    read_contract,
    read_linear,
)
from norton_plugin.surgery.layouts import LayerShape, Layout, layouts_for
from norton_plugin.surgery.names import check_ranks
from norton_plugin.surgery.report import Skipped

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_BLOCKS = (ConvBlock, CPDLinear)
MapSizes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Target:
    """A layer to be decomposed.

    Attributes:
        module: The layer.
        names: All its dotted names.
        contract: What a replacement has to keep.
        request: What is asked of it.
        shape: What decides its cost.
        layouts: What it may become; for rank "auto" at the lowest one.
        map_size: (H, W) of its input where known.
    """

    module: nn.Module
    names: tuple[str, ...]
    contract: ConvContract | LinearContract
    request: LayerRequest
    shape: LayerShape
    layouts: tuple[Layout, ...]
    map_size: tuple[int, ...] | None

    def at_rank(self, rank: int, *, more_macs: bool) -> tuple[Layout, ...]:
        """Return what it may become at a rank; nothing where the rank is too high."""
        found = layouts_for(self.shape, replace(self.request, rank=rank), name=self.names[0], more_macs=more_macs)
        return () if isinstance(found, Cause) else found


def plan_decomposition(
    model: nn.Module, decomposition: Decomposition, *, scope: Scope, map_sizes: MapSizes
) -> tuple[list[Target], list[Skipped]]:
    """Sort the model's layers into those to decompose and those to leave, with reasons.

    Args:
        model: Not changed.
        decomposition: What is asked for.
        scope: Which layers.
        map_sizes: Input and output map (H, W) per layer name.

    Returns:
        The targets in the model's order; all other convolutions, blocks of an earlier decomposition, and Linear
        layers where they were asked for.

    Raises:
        RecipeError: A pattern matches nothing, or settings contradict each other or a layer.
        DecompositionError: A weight holds NaN or infinity.
    """
    check_ranks(model, decomposition)
    kinds = (*_CONVOLUTIONS, nn.Linear, *_BLOCKS) if decomposition.linear else (*_CONVOLUTIONS, *_BLOCKS)
    layers = {m: n for m, n in names_by_identity(model).items() if isinstance(m, kinds) or mixes_experts(m)}
    targets: list[Target] = []
    skipped: list[Skipped] = []
    for module, names in layers.items():
        outcome = _consider(module, names, decomposition, scope, map_sizes)
        if isinstance(outcome, Target):
            targets.append(outcome)
        else:
            skipped.append(Skipped(names[0], outcome))
    return targets, skipped


def _consider(
    module: nn.Module,
    names: tuple[str, ...],
    decomposition: Decomposition,
    scope: Scope,
    map_sizes: MapSizes,
) -> Target | Cause:
    if not scope.admits(*names):
        return Reason.OUTSIDE_SCOPE.because()
    if isinstance(module, _BLOCKS):
        return Reason.DECOMPOSED.because()
    request = decomposition.request(names[0])
    linear = isinstance(module, nn.Linear)
    contract = read_linear(module) if isinstance(module, nn.Linear) else read_contract(module)
    if not request.active:
        return _whatever_is_asked(contract) or Reason.NO_RANK.because()
    if isinstance(contract, Cause):
        return contract
    sizes = next((map_sizes[name] for name in names if name in map_sizes), (None, None))
    shape = shape_of(contract, sizes)
    if shape.pointwise and (request.level == "filter" or request.rank is not None):
        return (Reason.LINEAR if linear else Reason.KERNEL_1X1).because()
    if shape.channels == 1:
        return Reason.ONE_INPUT_CHANNEL.because()
    layouts = _first_layouts(shape, request, name=names[0], more_macs=decomposition.allow_more_macs)
    if isinstance(layouts, Cause):
        return layouts
    if linear:
        layouts = tuple(layout for layout in layouts if layout.clusters == 1)
        if not layouts:
            return Reason.LINEAR.because()
    check_finite(names[0], contract.weight)
    return Target(module, names, contract, request, shape, layouts, sizes[0])


def _whatever_is_asked(contract: ConvContract | LinearContract | Cause) -> Cause | None:
    """Return why a layer stays dense whatever a recipe asks for, None where that is up to the recipe.

    A budget asks for nothing of such layers, so that its recipe cannot be the reason.
    """
    if isinstance(contract, Cause):
        return contract if contract.reason is Reason.NOT_A_CONVOLUTION else None
    return Reason.ONE_INPUT_CHANNEL.because() if shape_of(contract).channels == 1 else None


def _first_layouts(
    shape: LayerShape, request: LayerRequest, *, name: str, more_macs: bool
) -> tuple[Layout, ...] | Cause:
    """Return what a layer may become; for rank "auto" at the lowest rank at which it may become anything."""
    if request.rank != "auto":
        return layouts_for(shape, request, name=name, more_macs=more_macs)
    found = layouts_for(shape, replace(request, rank=1), name=name, more_macs=more_macs)
    if isinstance(found, Cause) and found.reason is Reason.RANK_TOO_LOW:  # rank 2 pays for the mix of all clusters
        found = layouts_for(shape, replace(request, rank=2), name=name, more_macs=more_macs)
    return found


def shape_of(
    contract: ConvContract | LinearContract,
    sizes: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None),
) -> LayerShape:
    """Return what decides the cost of a layer.

    Args:
        contract: Of the layer.
        sizes: (Hi, Wi) and (Ho, Wo); where one is None, the stride tells their ratio.
    """
    filters, channels, *kernel = contract.weight.shape
    kernel_size = tuple(kernel)
    if isinstance(contract, LinearContract):
        return LayerShape(filters, channels, kernel_size)
    before, after = sizes
    if before is None or after is None:
        before, after = contract.stride, (1,) * len(kernel_size)
    return LayerShape(filters, channels, kernel_size, contract.groups, before, after)
