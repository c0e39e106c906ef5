"""Phase one on a model: every convolution worth it becomes a CPDBlock."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from norton_plugin.blocks import CPDBlock, break_even_rank
from norton_plugin.cpd import CPDResult, decompose_layers
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import TOLERANCE
from norton_plugin.modules.swap import names_by_identity, swap_, take_over_flags_
from norton_plugin.patterns import lookup
from norton_plugin.reasons import Cause, Reason
from norton_plugin.recipe import Decomposition, Rank, Scope
from norton_plugin.surgery.contract import ConvContract, check_finite, read_contract
from norton_plugin.surgery.equality import replacement_error
from norton_plugin.surgery.names import check_ranks, check_scope
from norton_plugin.surgery.report import DecomposedLayer, DecompositionReport, Skipped, summary

logger = logging.getLogger(__name__)

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
MapSizes = Mapping[str, tuple[tuple[int, int], tuple[int, int]]]


@dataclass(frozen=True)
class _Target:
    """A convolution to be decomposed, the highest rank it may get, and the size of its input map where known."""

    module: nn.Module
    names: tuple[str, ...]
    contract: ConvContract
    rank: Rank
    limit: int
    map_size: tuple[int, int] | None


def block_from_contract(contract: ConvContract, rank: int, *, like: nn.Module | None = None) -> CPDBlock:
    """Return an uninitialised CPDBlock with the geometry, device and dtype of a convolution; draw no random number.

    Args:
        contract: As read by ``read_contract``.
        rank: R.
        like: The module whose training flag and ``requires_grad`` are taken over.
    """
    weight = contract.weight
    block = nn.utils.skip_init(
        CPDBlock,
        contract.in_channels,
        weight.shape[0],
        contract.kernel_size,
        rank,
        stride=contract.stride,
        padding=contract.padding,
        dilation=contract.dilation,
        groups=contract.groups,
        bias=contract.bias is not None,
        padding_mode=contract.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    if like is not None:
        take_over_flags_(block, like)
    return block


def from_conv(conv: nn.Module, rank: int, *, seed: int = 0, restarts: int = 3, sweeps: int = 300) -> CPDBlock:
    """Decompose one convolution.

    Args:
        conv: A 2-D convolution with kernel, stride, dilation, groups and padding of any kind.
        rank: R, from 1 to Kh * Kw.
        seed: Of the random starts.
        restarts: Starts per filter.
        sweeps: Most ALS sweeps.

    Returns:
        The block, with the convolution's device, dtype, training flag and ``requires_grad``.

    Raises:
        SurgeryError: The module is not a convolution that can be replaced exactly.
        DecompositionError: The rank or the weight cannot be used.
    """
    contract = read_contract(conv)
    if isinstance(contract, Cause):
        raise SurgeryError(f"cannot decompose: {contract}")
    check_finite(type(conv).__name__, contract.weight)
    [result] = decompose_layers([contract.weight], rank, seed=seed, restarts=restarts, sweeps=sweeps)
    block = block_from_contract(contract, rank, like=conv)
    block.set_factors(result.factors, contract.bias)
    return block


def decompose_(
    model: nn.Module,
    decomposition: Decomposition,
    *,
    scope: Scope | None = None,
    map_sizes: MapSizes | None = None,
    verify: bool = True,
    require: bool = True,
) -> DecompositionReport:
    """Replace convolutions by CPDBlocks, in place.

    Every block is compared with the convolution it replaces, given the weight rebuilt from the factors; a layer that
    differs stays as it was and is listed.

    Args:
        model: Changed in place, or not at all where an error is raised.
        decomposition: Ranks and how to reach them.
        scope: Which layers; all by default.
        map_sizes: Input and output map (H, W) per layer name, for the exact break-even rank; without it the stride
            is used.
        verify: Make that comparison: one pass of each layer over a map of at most about 16 pixels a side.
        require: Raise where not one layer can be decomposed; otherwise the report is merely empty.

    Returns:
        What was decomposed, and every other convolution with the reason.

    Raises:
        RecipeError: A pattern matches nothing.
        DecompositionError: A weight holds NaN or infinity.
        SurgeryError: Not one layer can be decomposed, and ``require`` is set.
    """
    scope = scope or Scope()
    check_scope(model, scope)
    targets, skipped = plan_decomposition(model, decomposition, scope=scope, map_sizes=map_sizes or {})
    results = _results(targets, decomposition, skipped)
    replacements: dict[nn.Module, nn.Module] = {}
    layers = []
    seconds = 0.0
    for target, rank, result in results:
        block = block_from_contract(target.contract, rank, like=target.module)
        block.set_factors(result.factors, target.contract.bias)
        start = time.perf_counter()
        error = _error(target, block) if verify else None
        seconds += time.perf_counter() - start
        if isinstance(error, Cause):
            skipped.append(Skipped(target.names[0], error))
            continue
        replacements[target.module] = block
        layers.append(
            DecomposedLayer(
                target.names,
                rank,
                float(result.nmse.mean()),
                float(result.nmse.max()),
                int(result.fallback.sum()),
                error,
            )
        )
    if require and not layers:
        raise SurgeryError(f"none of the model's convolutions can be decomposed: {summary(skipped) or 'it has none'}")
    swap_(model, replacements)
    logger.info("decomposed %d convolutions, left %d", len(layers), len(skipped))
    return DecompositionReport(tuple(layers), tuple(skipped), verify, seconds)


def _error(target: _Target, block: CPDBlock) -> float | Cause:
    """Return the block's error against the convolution with the rebuilt weight, or why it must not take its place."""
    try:
        error = replacement_error(target.module, block, target.contract.weight, map_size=target.map_size)
    except Exception as problem:
        return Reason.BLOCK_NOT_COMPARED.from_error(problem)
    if error > TOLERANCE:
        return Reason.BLOCK_DIFFERS.because(error=error, limit=TOLERANCE)
    return error


def plan_decomposition(
    model: nn.Module, decomposition: Decomposition, *, scope: Scope, map_sizes: MapSizes
) -> tuple[list[_Target], list[Skipped]]:
    """Sort the model's convolutions into those to decompose and those to leave, with reasons."""
    check_ranks(model, decomposition)
    convolutions = {m: n for m, n in names_by_identity(model).items() if isinstance(m, _CONVOLUTIONS)}
    targets: list[_Target] = []
    skipped: list[Skipped] = []
    for module, names in convolutions.items():
        outcome = _consider(module, names, decomposition, scope, map_sizes)
        if isinstance(outcome, _Target):
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
) -> _Target | Cause:
    if not scope.admits(*names):
        return Reason.OUTSIDE_SCOPE.because()
    rank: Rank = lookup(decomposition.ranks, names[0], decomposition.rank)
    if rank is None:
        return Reason.NO_RANK.because()
    contract = read_contract(module)
    if isinstance(contract, Cause):
        return contract
    filters, channels, *_ = contract.weight.shape
    if contract.kernel_size == (1, 1):
        return Reason.KERNEL_1X1.because()
    if channels == 1:
        return Reason.ONE_INPUT_CHANNEL.because()
    sizes = next((map_sizes[name] for name in names if name in map_sizes), (None, None))
    useful = contract.kernel_size[0] * contract.kernel_size[1]
    limit = break_even_rank(
        channels,
        contract.kernel_size,
        stride=contract.stride,
        input_size=sizes[0],
        output_size=sizes[1],
    )
    if decomposition.allow_more_macs:
        limit = useful
    limit = min(limit, useful)
    wanted = 1 if rank == "auto" else rank
    if isinstance(wanted, int) and wanted > limit and not decomposition.allow_more_macs:
        return Reason.RANK_TOO_HIGH.because(rank=wanted, limit=limit)
    check_finite(names[0], contract.weight)
    return _Target(module, names, contract, rank if rank == "auto" else min(int(rank), useful), limit, sizes[0])


def _results(
    targets: list[_Target], decomposition: Decomposition, skipped: list[Skipped]
) -> list[tuple[_Target, int, CPDResult]]:
    """Decompose all fixed ranks in one batch, then raise the automatic ones step by step."""

    def run(chosen: list[_Target], ranks: list[int]) -> list[CPDResult]:
        return decompose_layers(
            [target.contract.weight for target in chosen],
            ranks,
            restarts=decomposition.restarts,
            sweeps=decomposition.sweeps,
            tolerance=decomposition.tolerance,
            seed=decomposition.seed,
        )

    done: dict[int, tuple[int, CPDResult]] = {}
    fixed = [t for t in targets if t.rank != "auto"]
    with torch.no_grad():
        for target, result in zip(fixed, run(fixed, [int(t.rank or 0) for t in fixed]) if fixed else [], strict=True):
            done[id(target)] = (int(target.rank or 0), result)
        open_targets = [t for t in targets if t.rank == "auto"]
        rank = 1
        while open_targets:
            remaining = []
            for target, result in zip(open_targets, run(open_targets, [rank] * len(open_targets)), strict=True):
                if float(result.nmse.mean()) <= decomposition.target_nmse:
                    done[id(target)] = (rank, result)
                elif rank < target.limit:
                    remaining.append(target)
                else:
                    cause = Reason.NMSE_TOO_HIGH.because(
                        nmse=float(result.nmse.mean()), rank=rank, target=decomposition.target_nmse
                    )
                    skipped.append(Skipped(target.names[0], cause))
            open_targets, rank = remaining, rank + 1
    return [(target, *done[id(target)]) for target in targets if id(target) in done]
