"""Phase one on a model: every layer worth it becomes a block of factors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from norton_plugin.blocks import CPD_BLOCKS, ConvBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.cpd import CoupledFactors
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.modules.running import TOLERANCE
from norton_plugin.modules.swap import swap_, take_over_flags_
from norton_plugin.reasons import Cause, Reason
from norton_plugin.recipe import Decomposition, LayerRequest, Level, Scope
from norton_plugin.surgery.contract import ConvContract, LinearContract, check_finite, read_contract
from norton_plugin.surgery.equality import replacement_error
from norton_plugin.surgery.factorise import Factorised, factorise
from norton_plugin.surgery.layouts import Layout, layouts_for
from norton_plugin.surgery.names import check_scope
from norton_plugin.surgery.report import DecomposedLayer, DecompositionReport, Skipped, summary
from norton_plugin.surgery.targets import MapSizes, Target, plan_decomposition, shape_of
from norton_plugin.surgery.untied import untied_layers

logger = logging.getLogger(__name__)


def block_from_contract(
    contract: ConvContract | LinearContract,
    layout: Layout,
    *,
    cluster_size: int | None = None,
    like: nn.Module | None = None,
) -> ConvBlock | CPDLinear:
    """Return an uninitialised block with the geometry, device and dtype of a layer; draw no random number.

    Args:
        contract: As read by ``read_contract`` or ``read_linear``.
        layout: Level, clusters and rank.
        cluster_size: Places in each cluster, where there are several.
        like: The module whose training flag and ``requires_grad`` are taken over.
    """
    weight = contract.weight
    kind: dict[str, Any] = {"bias": contract.bias is not None, "device": weight.device, "dtype": weight.dtype}
    block: ConvBlock | CPDLinear
    if isinstance(contract, LinearContract):
        block = nn.utils.skip_init(CPDLinear, weight.shape[1], weight.shape[0], layout.rank, **kind)
    else:
        geometry = ("stride", "padding", "dilation", "groups", "padding_mode")
        kind |= {name: getattr(contract, name) for name in geometry}
        if layout.level != "spatial":
            kind |= {"clusters": layout.clusters, "cluster_size": cluster_size}
        block = nn.utils.skip_init(
            SpatialSVDBlock if layout.level == "spatial" else CPD_BLOCKS[len(contract.kernel_size)],
            contract.in_channels,
            weight.shape[0],
            contract.kernel_size,
            layout.rank,
            **kind,
        )
    if like is not None:
        take_over_flags_(block, like)
    return block


def block_from_factors(target: Target, found: Factorised) -> ConvBlock | CPDLinear:
    """Return the block of a layer with its factors."""
    factors, contract = found.factors, target.contract
    size = None
    if isinstance(factors, CoupledFactors) and factors.clusters > 1:
        size = int(factors.cluster.bincount().max())
    block: Any = block_from_contract(contract, found.layout, cluster_size=size, like=target.module)
    if isinstance(block, CPDLinear):
        block.set_factors(factors.head[0], factors.mix, contract.bias)  # type: ignore[union-attr]
    else:
        block.set_factors(factors, contract.bias)
    return block


def from_conv(
    conv: nn.Module,
    rank: int | None = None,
    *,
    level: Level = "filter",
    components: int | None = None,
    share: float | None = None,
    clusters: int | None = None,
    seed: int = 0,
    restarts: int = 3,
    sweeps: int = 300,
) -> ConvBlock:
    """Decompose one convolution, even where that needs more MACs.

    Args:
        conv: A 1-D, 2-D or 3-D convolution with kernel, stride, dilation, groups and padding of any kind.
        rank: R per filter, from 1 to Kh * Kw (the size of the kernel); at the other levels, as many components as
            cost no more.
        level: Which filters share components, and of what kind; see ``recipe.Decomposition``.
        components: M, in place of ``rank``.
        share: MACs as a share of the convolution's, in place of ``rank``.
        clusters: For the level ``"cluster"``.
        seed: Of the random starts.
        restarts: Starts per filter or cluster.
        sweeps: Most ALS sweeps.

    Returns:
        The block, with the convolution's device, dtype, training flag and ``requires_grad``.

    Raises:
        RecipeError: Settings that contradict each other, or none of rank, components and share.
        SurgeryError: The module is not a convolution that can be replaced exactly, or has no such block.
        DecompositionError: The rank or the weight cannot be used.
    """
    contract = read_contract(conv)
    if isinstance(contract, Cause):
        raise SurgeryError(f"cannot decompose: {contract}")
    options = Decomposition(
        level=level,
        rank=rank,
        components=components,
        share=share,
        clusters=clusters,
        allow_more_macs=True,
        seed=seed,
        restarts=restarts,
        sweeps=sweeps,
    )
    name = type(conv).__name__
    check_finite(name, contract.weight)
    request, shape = options.request(name), shape_of(contract)
    if not request.active or request.rank == "auto":
        raise RecipeError(f"the rank of {name} is {rank!r}; give from_conv a whole number, or components, or a share")
    layouts = _fixed_layouts(request, contract, name)
    [(target, found)], _ = factorise([Target(conv, (name,), contract, request, shape, layouts, None)], options)
    block = block_from_factors(target, found)
    if isinstance(block, CPDLinear):
        raise SurgeryError(f"{name} is a Linear layer, not a convolution")
    return block


def _fixed_layouts(request: LayerRequest, contract: ConvContract, name: str) -> tuple[Layout, ...]:
    if request.level == "filter" and isinstance(request.rank, int):
        return (Layout("filter", None, request.rank),)  # the decomposition itself says what is wrong with a rank
    layouts = layouts_for(shape_of(contract), request, name=name, more_macs=True)
    if isinstance(layouts, Cause):
        raise SurgeryError(f"cannot decompose: {layouts}")
    return layouts


def decompose_(
    model: nn.Module,
    decomposition: Decomposition,
    *,
    scope: Scope | None = None,
    map_sizes: MapSizes | None = None,
    verify: bool = True,
    require: bool = True,
    on_detail: Callable[[str], None] | None = None,
) -> DecompositionReport:
    """Replace convolutions by blocks of factors, and Linear layers by CPDLinear where that is asked for, in place.

    Every block is compared with the layer it replaces, given the weight rebuilt from the factors; a layer that
    differs stays as it was and is listed.

    Args:
        model: Changed in place, or not at all where an error is raised.
        decomposition: Levels and sizes, and how to reach them.
        scope: Which layers; all by default.
        map_sizes: Input and output map (H, W) per layer name, for exact MACs; without it the stride is used.
        verify: Make that comparison: one pass of each layer over a map of at most about 16 pixels a side.
        require: Raise where not one layer can be decomposed; otherwise the report is merely empty.
        on_detail: Told how far it is, in words.

    Returns:
        What was decomposed, and every other convolution with the reason.

    Raises:
        RecipeError: A pattern matches nothing, or settings contradict each other or a layer.
        DecompositionError: A weight holds NaN or infinity.
        SurgeryError: Not one layer can be decomposed, and ``require`` is set.
    """
    scope = scope or Scope()
    check_scope(model, scope)
    targets, skipped = plan_decomposition(model, decomposition, scope=scope, map_sizes=map_sizes or {})
    results, missed = factorise(targets, decomposition, on_detail=on_detail)
    skipped += missed
    replacements: dict[nn.Module, nn.Module] = {}
    layers = []
    seconds = 0.0
    for target, found in results:
        block = block_from_factors(target, found)
        start = time.perf_counter()
        error = _error(target, block) if verify else None
        seconds += time.perf_counter() - start
        if isinstance(error, Cause):
            skipped.append(Skipped(target.names[0], error))
            continue
        replacements[target.module] = block
        layers.append(_record(target, found, error))
    if require and not layers:
        raise SurgeryError(f"none of the model's convolutions can be decomposed: {summary(skipped) or 'it has none'}")
    untied = untied_layers(model, replacements.keys())
    swap_(model, replacements)
    logger.info("decomposed %d layers, left %d", len(layers), len(skipped))
    return DecompositionReport(tuple(layers), tuple(skipped), verify, seconds, untied)


def _record(target: Target, found: Factorised, error: float | None) -> DecomposedLayer:
    layout = found.layout
    return DecomposedLayer(
        target.names,
        layout.rank,
        float(found.nmse.mean()),
        float(found.nmse.max()),
        found.fallback,
        error,
        level=layout.level,
        clusters=layout.clusters,
        components=layout.components,
        nmse_layer=found.layer_nmse,
        largest_component=found.largest_component,
    )


def _error(target: Target, block: ConvBlock | CPDLinear) -> float | Cause:
    """Return the block's error against the layer with the rebuilt weight, or why it must not take its place."""
    try:
        error = replacement_error(target.module, block, target.contract.weight, map_size=target.map_size)
    except Exception as problem:
        return Reason.BLOCK_NOT_COMPARED.from_error(problem)
    if error > TOLERANCE:
        return Reason.BLOCK_DIFFERS.because(error=error, limit=TOLERANCE)
    return error
