"""Rank-R CPD of all filters of one or many layers at once (docs/method.md, section 1)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from norton_plugin.cpd.factors import WEIGHT_DIMENSIONS, CPDFactors, exact_factors
from norton_plugin.cpd.options import ALSOptions
from norton_plugin.cpd.scaling import unit_scale
from norton_plugin.cpd.solve import solve
from norton_plugin.cpd.starts import random_starts, structured_start
from norton_plugin.cpd.unfolding import attach_head, gram_of_filters
from norton_plugin.errors import DecompositionError


@dataclass(frozen=True)
class CPDResult:
    """Factors of one layer and how good they are.

    Attributes:
        factors: Float64 factors on the device of the weight, balanced.
        nmse: ``||W[n] - W^[n]||^2 / ||W[n]||^2`` per filter, shape (N,), float64; 0 for a zero filter.
        sweeps: Most ALS sweeps given to any filter decomposed together with this layer; 0 if none was needed.
        fallback: Shape (N,), True where ALS broke down and the truncated HOSVD start was kept.
    """

    factors: CPDFactors
    nmse: Tensor
    sweeps: int
    fallback: Tensor


def decompose_filters(
    weight: Tensor,
    rank: int,
    *,
    restarts: int = 3,
    sweeps: int = 300,
    tolerance: float = 1e-5,
    ridge: float = 1e-6,
    seed: int = 0,
    chunk_bytes: int = 256 * 2**20,
) -> CPDResult:
    """Decompose every filter of a convolution weight into ``rank`` rank-one terms.

    Batched alternating least squares in float64, all filters at once, with extrapolation and several starts.
    Rank Kh*Kw is factored exactly, without iterations. Every filter is scaled by a power of two first, so any finite
    weight will do.

    Args:
        weight: Shape (N, C, Kh, Kw), any floating dtype and device; or (N, C, Kt, Kh, Kw) of a 3-D convolution, whose
            filters are 4-way tensors, or (N, C, Kw) of a 1-D one.
        rank: R, from 1 to Kh*Kw, the product of the kernel's lengths.
        restarts: Starts per filter, >= 1: a truncated HOSVD and ``restarts - 1`` random ones.
        sweeps: Most ALS sweeps per filter, >= 1.
        tolerance: A filter is done when its NMSE fell by less than this share of itself in ten sweeps; >= 0.
        ridge: Added to the diagonal of the R x R systems, relative to its mean; in (0, 1). It keeps terms from
            growing without bound against each other, as best approximations of rank > 1 may not exist. On trained
            3x3 filters at R = 4, 1e-6 raises the NMSE by 0.02 % of itself over 1e-10, and rounding the factors to
            bfloat16 then adds 0.2 % instead of 77 %.
        seed: Of the random starts. Equal seeds and ``chunk_bytes`` give equal factors.
        chunk_bytes: Bound on working memory, in bytes. A single filter is processed even if it needs more.

    Returns:
        Factors, errors, and which filters fell back to their start.

    Raises:
        DecompositionError: Wrong shape, dtype or rank, values that are not finite, or an option out of range.
    """
    return decompose_layers(
        [weight],
        rank,
        restarts=restarts,
        sweeps=sweeps,
        tolerance=tolerance,
        ridge=ridge,
        seed=seed,
        chunk_bytes=chunk_bytes,
    )[0]


def decompose_layers(
    weights: Sequence[Tensor],
    rank: int | Sequence[int],
    *,
    restarts: int = 3,
    sweeps: int = 300,
    tolerance: float = 1e-5,
    ridge: float = 1e-6,
    seed: int = 0,
    chunk_bytes: int = 256 * 2**20,
    on_layer: Callable[[], None] | None = None,
) -> list[CPDResult]:
    """Decompose several layers; filters of equal kernel shape, rank and device share one batch.

    The result of a layer is the one `decompose_filters` gives for it alone, but for ``sweeps``.

    Args:
        weights: Weights of shape (N, C, Kh, Kw), or of 3-D or 1-D convolutions; all lengths may differ between layers.
        rank: One rank for all layers, or one per layer.
        restarts: See `decompose_filters`.
        sweeps: See `decompose_filters`.
        tolerance: See `decompose_filters`.
        ridge: See `decompose_filters`.
        seed: See `decompose_filters`.
        chunk_bytes: See `decompose_filters`.
        on_layer: Called once for every layer, as soon as it is done.

    Returns:
        One result per weight, in the same order.

    Raises:
        DecompositionError: As in `decompose_filters`, or the number of ranks is not the number of weights.
    """
    options = ALSOptions(restarts, sweeps, tolerance, ridge, seed, chunk_bytes)
    ranks = list(rank) if isinstance(rank, Sequence) else [rank] * len(weights)
    if len(ranks) != len(weights):
        raise DecompositionError(
            f"Got {len(ranks)} ranks for {len(weights)} weights; give one rank, or one per weight."
        )
    groups: dict[tuple[torch.Size, int, torch.device], list[int]] = {}
    for index, (weight, layer_rank) in enumerate(zip(weights, ranks, strict=True)):
        check_weight(weight, layer_rank)
        groups.setdefault((weight.shape[2:], layer_rank, weight.device), []).append(index)

    results: dict[int, CPDResult] = {}
    for (kernel_size, group_rank, _), members in groups.items():
        group = [weights[index].detach() for index in members]
        solved = _exact(group) if group_rank == kernel_size.numel() else _iterate(group, group_rank, options)
        results.update(zip(members, solved, strict=True))
        if on_layer is not None:
            for _ in members:
                on_layer()
    return [results[index] for index in range(len(weights))]


def check_weight(weight: Tensor, rank: int, *, dimensions: Sequence[int] = WEIGHT_DIMENSIONS) -> None:
    """Refuse what cannot be decomposed.

    Args:
        weight: Should be floating, finite, non-empty, of shape (N, C, Kh, Kw), or with one or three axes behind C.
        rank: Should be from 1 to Kh*Kw.
        dimensions: How many it may have.

    Raises:
        DecompositionError: One of these does not hold.
    """
    if weight.dim() not in dimensions or weight.numel() == 0 or not weight.is_floating_point():
        raise DecompositionError(
            f"Expected a non-empty floating weight (N, C, Kh, Kw), got {weight.dtype} of shape "
            f"{tuple(weight.shape)}; pass the weight of a Conv2d (or of a Conv1d or Conv3d)."
        )
    limit = weight.shape[2:].numel()
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= limit:
        raise DecompositionError(
            f"Rank {rank} was asked for filters of shape {tuple(weight.shape[1:])}; it must be an integer "
            f"from 1 to {'Kh*Kw' if weight.dim() == 4 else 'the size of the kernel'} = {limit}, where the "
            "factorisation is already exact."
        )
    finite = weight.detach().isfinite().flatten(1).all(1)
    if not finite.all():
        bad = int((~finite).sum())
        raise DecompositionError(
            f"{bad} of {len(finite)} filters hold NaN or infinite values (the first is filter "
            f"{int(finite.logical_not().nonzero()[0])}); repair the weight or leave this layer out."
        )


def _exact(weights: Sequence[Tensor]) -> list[CPDResult]:
    """Factor at rank Kh*Kw."""
    results = []
    for weight in weights:
        scaled, exponent = unit_scale(weight, dims=weight.dim() - 1)
        factors = exact_factors(scaled).balanced()
        no = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        results.append(CPDResult(factors.times_power_of_two(exponent), factors.nmse(scaled), 0, no))
    return results


def _iterate(weights: Sequence[Tensor], rank: int, options: ALSOptions) -> list[CPDResult]:
    """Decompose layers of equal kernel shape by ALS, chunk by chunk."""
    kernel_size = weights[0].shape[2:]
    starts = [
        random_starts(len(weight), kernel_size=kernel_size, rank=rank, count=options.restarts - 1, seed=options.seed)
        for weight in weights
    ]
    parts: list[list[CPDResult]] = [[] for _ in weights]
    for pieces in _chunks(weights, rank, options):
        modes = range(len(kernel_size))
        cut = [weights[layer][where] for layer, where in pieces]
        random = [torch.cat([starts[layer][mode][..., where] for layer, where in pieces], dim=3) for mode in modes]
        for (layer, _), result in zip(pieces, _iterate_chunk(cut, random, rank, options), strict=True):
            parts[layer].append(result)
    return [_join(part) for part in parts]


def _iterate_chunk(
    weights: Sequence[Tensor], random: Sequence[Tensor], rank: int, options: ALSOptions
) -> Iterator[CPDResult]:
    """Decompose pieces of layers together; the random starts are those of all their filters, in order."""
    scaled = [unit_scale(weight, dims=weight.dim() - 1) for weight in weights]
    grams = torch.cat([gram_of_filters(weight) for weight, _ in scaled], dim=2)
    structured = structured_start(grams, kernel_size=weights[0].shape[2:], rank=rank)
    first = [torch.cat([s.unsqueeze(2), r.to(s.device)], dim=2) for s, r in zip(structured, random, strict=True)]
    solution = solve(grams, *first, sweeps=options.sweeps, tolerance=options.tolerance, ridge=options.ridge)
    offset = 0
    for weight, exponent in scaled:
        span = slice(offset, offset + len(weight))
        offset = span.stop
        factors = attach_head(weight, *(factor[..., span] for factor in solution.kernel), ridge=options.ridge)
        result = factors.times_power_of_two(exponent)
        yield CPDResult(result, factors.nmse(weight), solution.sweeps, solution.fallback[span])


def _chunks(weights: Sequence[Tensor], rank: int, options: ALSOptions) -> Iterator[list[tuple[int, slice]]]:
    """Cut the filters of all layers, in order, into runs whose working memory stays below the bound."""
    positions = weights[0].shape[2:].numel()
    room = options.chunk_bytes
    pieces: list[tuple[int, slice]] = []
    for layer, weight in enumerate(weights):
        # Float64 weight and its parts; Grams; about eight D x R temporaries per start.
        need = 8 * (4 * weight[0].numel() + 4 * positions**2 + 8 * options.restarts * positions * rank)
        begin = 0
        while begin < len(weight):
            take = min(len(weight) - begin, max(room // need, 0 if pieces else 1))
            if take:
                pieces.append((layer, slice(begin, begin + take)))
                begin, room = begin + take, room - take * need
            if begin < len(weight):
                yield pieces
                pieces, room = [], options.chunk_bytes
    if pieces:
        yield pieces


def _join(parts: Sequence[CPDResult]) -> CPDResult:
    """Concatenate the chunks of one layer."""
    factors = CPDFactors(*(torch.cat(tensors) for tensors in zip(*(part.factors for part in parts), strict=True)))
    return CPDResult(
        factors,
        torch.cat([part.nmse for part in parts]),
        max(part.sweeps for part in parts),
        torch.cat([part.fallback for part in parts]),
    )
