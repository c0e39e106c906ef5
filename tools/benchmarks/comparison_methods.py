"""Decompositions that the package's own is compared with: tensorly's CPD of filters, and methods for whole layers.

`decompose_parafac` is the slow oracle of `norton_plugin.cpd.decompose_filters`. The layer-wise methods are those that
Figure 1 of the paper compares filter-wise CPD with; `approximate_layer` runs any of them by its name. tensorly always
runs inside its own thread-local backend context. Benchmarks and tests import this file; the package does not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import tensorly
import torch
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor

from norton_plugin.cpd.als import CPDResult, check_weight, decompose_filters
from norton_plugin.cpd.factors import CPDFactors
from norton_plugin.cpd.scaling import times_power_of_two, unit_scale
from norton_plugin.errors import DecompositionError


@dataclass(frozen=True)
class LayerApproximation:
    """A weight approximated as a whole.

    Attributes:
        weight: The approximation, shape (N, C, Kh, Kw), float64.
        parameters: Numbers stored. Every method here runs as a chain of convolutions that uses each parameter once
            per position, so at stride 1 this is also the MACs per output position.
        nmse: ``||W - W^||^2 / ||W||^2`` of the layer; 0 for a zero weight.
    """

    weight: Tensor
    parameters: int
    nmse: float


class FilterDecomposer(Protocol):
    """Decomposes every filter of a weight (N, C, Kh, Kw) to the rank given."""

    def __call__(self, weight: Tensor, rank: int, *, seed: int = 0) -> CPDResult:
        """Decompose; see `decompose_filters`."""


@dataclass(frozen=True)
class LayerMethod:
    """A layer-wise decomposition.

    Attributes:
        approximate: Maps (weight float64, rank, seed) to the approximation, same shape.
        parameters: Maps (shape (N, C, Kh, Kw), rank) to the numbers stored.
        largest_rank: Maps the shape to the largest rank with a meaning.
    """

    approximate: Callable[[Tensor, int, int], Tensor]
    parameters: Callable[[tuple[int, int, int, int], int], int]
    largest_rank: Callable[[tuple[int, int, int, int]], int]


def decompose_parafac(weight: Tensor, rank: int, *, seed: int = 0, sweeps: int = 300) -> CPDResult:
    """Decompose one filter after the other by tensorly's `parafac` from a random start.

    Args:
        weight: Shape (N, C, Kh, Kw).
        rank: R, from 1 to Kh*Kw.
        seed: Of the random start; filter ``n`` uses ``seed + n``.
        sweeps: Most ALS iterations per filter.

    Returns:
        Float64 factors, balanced. ``sweeps`` is the bound given, ``fallback`` is False throughout.

    Raises:
        DecompositionError: As in `decompose_filters`.
    """
    check_weight(weight, rank)
    dense, exponent = unit_scale(weight.detach(), dims=3)
    sizes = dense.shape[1:]
    terms: list[list[Tensor]] = []
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        for index, tensor in enumerate(dense):
            if not tensor.any():
                terms.append([tensor.new_zeros(size, rank) for size in sizes])
                continue
            cp = parafac(tensor, rank, n_iter_max=sweeps, init="random", tol=1e-8, random_state=seed + index)
            terms.append([cp.factors[0] * cp.weights, cp.factors[1], cp.factors[2]])
    factors = CPDFactors(*(torch.stack(mode).mT.contiguous() for mode in zip(*terms, strict=True))).balanced()
    fallback = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    return CPDResult(factors.times_power_of_two(exponent), factors.nmse(dense), sweeps, fallback)


def filter_parameters(shape: tuple[int, int, int, int], rank: int) -> int:
    """Return how many numbers a filter-wise CPD stores: ``R N (C + Kh + Kw)`` (docs/method.md, section 1).

    Args:
        shape: (N, C, Kh, Kw).
        rank: R.
    """
    filters, channels, height, width = shape
    return rank * filters * (channels + height + width)


def _layer_cp(weight: Tensor, rank: int, seed: int) -> Tensor:
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        cp = parafac(weight, rank, n_iter_max=100, init="random", tol=1e-6, random_state=seed)
        return tensorly.cp_to_tensor(cp)


def tucker_ranks(shape: tuple[int, int, int, int], rank: int) -> list[int]:
    """Return how many outputs and inputs Tucker keeps: ``rank`` outputs and the same share of the inputs.

    Args:
        shape: (N, C, Kh, Kw).
        rank: Outputs kept.
    """
    return [rank, min(shape[1], max(1, round(rank * shape[1] / shape[0])))]


def _tucker2(weight: Tensor, rank: int, seed: int) -> Tensor:
    shape = _shape(weight)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        ranks = tucker_ranks(shape, rank)
        (core, factors), _ = partial_tucker(weight, ranks, modes=[0, 1], n_iter_max=100, random_state=seed)
    return torch.einsum("abhw,na,cb->nchw", core, *factors)


def _truncated(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def _svd_channels(weight: Tensor, rank: int, seed: int) -> Tensor:
    return _truncated(weight.flatten(1), rank).reshape(weight.shape)


def _svd_spatial(weight: Tensor, rank: int, seed: int) -> Tensor:
    filters, channels, height, width = weight.shape
    matrix = weight.permute(1, 2, 0, 3).reshape(channels * height, filters * width)
    return _truncated(matrix, rank).reshape(channels, height, filters, width).permute(2, 0, 1, 3)


def _tucker_parameters(shape: tuple[int, int, int, int], rank: int) -> int:
    filters, channels, height, width = shape
    out, into = tucker_ranks(shape, rank)
    return filters * out + channels * into + out * into * height * width


FILTER_DECOMPOSERS: dict[str, FilterDecomposer] = {"als": decompose_filters, "parafac": decompose_parafac}
"""Filter-wise methods by name."""

LAYER_METHODS: dict[str, LayerMethod] = {
    "layer_cp": LayerMethod(_layer_cp, lambda s, r: r * sum(s), lambda s: s[0] * s[1] * s[2] * s[3] // max(s)),
    "tucker2": LayerMethod(_tucker2, _tucker_parameters, lambda s: s[0]),
    "svd_channels": LayerMethod(
        _svd_channels, lambda s, r: r * (s[0] + s[1] * s[2] * s[3]), lambda s: min(s[0], s[1] * s[2] * s[3])
    ),
    "svd_spatial": LayerMethod(
        _svd_spatial, lambda s, r: r * (s[1] * s[2] + s[0] * s[3]), lambda s: min(s[1] * s[2], s[0] * s[3])
    ),
}
"""Layer-wise methods by name: CP of the 4-way weight; Tucker of both channel modes; truncated SVD of the
N x (C Kh Kw) and of the (C Kh) x (N Kw) matrix."""


def approximate_layer(weight: Tensor, rank: int, *, method: str, seed: int = 0) -> LayerApproximation:
    """Approximate a weight by any method, filter-wise or layer-wise, for comparison at equal parameters.

    Args:
        weight: Shape (N, C, Kh, Kw).
        rank: Rank of the method, >= 1. Tucker keeps this many outputs, and the same share of the inputs.
        method: A key of `FILTER_DECOMPOSERS` or `LAYER_METHODS`.
        seed: Of random starts.

    Returns:
        The approximation, its size and its error.

    Raises:
        DecompositionError: Unknown method, bad weight, or a rank out of the range of the method.
    """
    shape = _shape(weight)
    check_weight(weight, 1)
    scaled, exponent = unit_scale(weight.detach(), dims=4)
    if method in FILTER_DECOMPOSERS:
        factors = FILTER_DECOMPOSERS[method](scaled, rank, seed=seed).factors
        found, parameters = factors.reconstruct(), filter_parameters(shape, rank)
    elif method in LAYER_METHODS:
        layer_method = LAYER_METHODS[method]
        limit = layer_method.largest_rank(shape)
        if not 1 <= rank <= limit:
            raise DecompositionError(f"Rank {rank} was asked of {method}; for shape {shape} it runs from 1 to {limit}.")
        found = layer_method.approximate(scaled, rank, seed)
        parameters = layer_method.parameters(shape, rank)
    else:
        known = ", ".join([*FILTER_DECOMPOSERS, *LAYER_METHODS])
        raise DecompositionError(f"Unknown method {method!r}; choose one of {known}.")
    energy = float(scaled.square().sum())
    error = float((found - scaled).square().sum())
    return LayerApproximation(times_power_of_two(found, exponent), parameters, error / energy if energy else 0.0)


def rank_for_parameters(shape: tuple[int, int, int, int], budget: int, *, method: str) -> int:
    """Find the largest rank of a layer-wise method that stores no more than a number of parameters.

    Args:
        shape: (N, C, Kh, Kw).
        budget: Most numbers that may be stored.
        method: A key of `LAYER_METHODS`.

    Returns:
        The rank; 0 if not even rank 1 fits.

    Raises:
        DecompositionError: Unknown method.
    """
    if method not in LAYER_METHODS:
        raise DecompositionError(f"Unknown method {method!r}; choose one of {', '.join(LAYER_METHODS)}.")
    chosen = LAYER_METHODS[method]
    ranks = range(1, chosen.largest_rank(shape) + 1)
    return max((rank for rank in ranks if chosen.parameters(shape, rank) <= budget), default=0)


def _shape(weight: Tensor) -> tuple[int, int, int, int]:
    """Shape of a four-dimensional weight."""
    if weight.dim() != 4:
        raise DecompositionError(f"Expected a weight (N, C, Kh, Kw), got shape {tuple(weight.shape)}.")
    filters, channels, height, width = weight.shape
    return filters, channels, height, width
