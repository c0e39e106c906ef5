"""CPD of clusters of filters that share components, batched over clusters and layers (docs/method.md, section 1)."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from norton_plugin.cpd.coupled_checks import check_layer, cluster_index
from norton_plugin.cpd.coupled_exact import exact_terms, full_components, truncated_svd
from norton_plugin.cpd.coupled_factors import CoupledFactors, clusters_by_size
from norton_plugin.cpd.coupled_pieces import Piece, PieceResult, iterate, single_filters
from norton_plugin.cpd.options import ALSOptions
from norton_plugin.cpd.scaling import times_power_of_two, unit_scale
from norton_plugin.errors import DecompositionError


@dataclass(frozen=True)
class CoupledResult:
    """Factors of one layer and how good they are.

    Attributes:
        factors: Float64 factors on the device of the weight, balanced.
        nmse: ``||W[n] - W^[n]||^2 / ||W[n]||^2`` per filter, shape (N,), float64; 0 for a zero filter.
        layer_nmse: ``||W - W^||^2 / ||W||^2`` of the whole layer; 0 for a zero weight.
        sweeps: Most ALS sweeps given to any cluster decomposed together with this layer; 0 if none was needed.
        largest_component: Largest Frobenius norm of one component over the norm of its cluster's weight. Far above
            one, components cancel each other (the CPD degenerates), and rounded factors lose digits.
        fallback: Shape (K,), True where ALS broke down and the truncated start was kept.
    """

    factors: CoupledFactors
    nmse: Tensor
    layer_nmse: float
    sweeps: int
    largest_component: float
    fallback: Tensor


def decompose_coupled(
    weights: Sequence[Tensor],
    components: int | Sequence[int],
    *,
    clusters: Sequence[Tensor | None] | None = None,
    metrics: Sequence[Tensor | None] | None = None,
    restarts: int = 3,
    sweeps: int = 150,
    tolerance: float = 1e-4,
    ridge: float = 3e-4,
    seed: int = 0,
    chunk_bytes: int = 1024 * 2**20,
    on_layer: Callable[[], None] | None = None,
) -> list[CoupledResult]:
    """Decompose layers into components that the filters of a cluster share.

    Every cluster's filters are one tensor (n, C, Kh, Kw) with a CPD of its own. Clusters of equal shape, of all
    layers, share a batch of extrapolated alternating least squares, single precision first, double to the end.
    Without a spatial kernel (Kh = Kw = 1; a Linear weight as (N, C, 1, 1)) the truncated SVD gives the optimum, at
    full rank the factors are exact, and clusters of one filter are decomposed by `decompose_layers`.

    Args:
        weights: Weights of shape (N, C, Kh, Kw), any floating dtype and device; all lengths may differ. Those of 3-D
            convolutions are (N, C, Kt, Kh, Kw), those of 1-D ones (N, C, Kw).
        components: M, one for all layers or one per layer: a multiple of the number of clusters K, each of which gets
            R = M/K, from 1 to `full_components` of its largest cluster.
        clusters: Per layer the cluster of every filter, integers (N,) from 0 to K - 1, or None for one cluster.
        metrics: Per layer None, or for kernels 1x1 the second moment of the inputs (C, C), symmetric positive
            semidefinite: the error of the output is then the smallest, not that of the weight.
        restarts: Starts per cluster, >= 1: one from the weight and ``restarts - 1`` random ones; above one, up to four
            times as many where a cluster has few components, whose local minima differ most, and one above 64.
        sweeps: Most ALS sweeps per cluster, >= 1; clusters of more than 64 components start near
            their end and get 60 % of them, large ones down to a tenth (`sweeps_of_many`).
        tolerance: A cluster is done when its error fell by less than this share of itself in ten sweeps; >= 0.
        ridge: Weight of the components' squared norms, relative to the squared error; in (0, 1). No component
            exceeds the norm of its cluster's weight over sqrt(ridge); without it, components may grow huge and cancel
            each other (docs/results has figures). Clusters of one filter use the ridge of `decompose_layers`.
        seed: Of the random starts. Equal seeds and ``chunk_bytes`` give equal factors.
        chunk_bytes: Bound on working memory, in bytes. A single cluster is processed even if it needs more.
        on_layer: Called once for every layer, as soon as it is done.

    Returns:
        One result per weight, in the same order.

    Raises:
        DecompositionError: A weight, a number of components, a cluster index, a metric or an option that is wrong.
    """
    options = ALSOptions(restarts, sweeps, tolerance, ridge, seed, chunk_bytes)
    counts = _per_layer(components, len(weights), "components")
    given = _per_layer(clusters, len(weights), "clusters")
    moments = _per_layer(metrics, len(weights), "metrics")
    layers = []
    for weight, count, cluster, metric in zip(weights, counts, given, moments, strict=True):
        index = cluster_index(cluster, weight)
        layers.append((weight.detach(), index, check_layer(weight, count, index, metric), metric))

    pieces: list[Piece] = []
    solved: list[tuple[Piece, PieceResult]] = []
    for place, (weight, index, rank, metric) in enumerate(layers):
        for chosen, filters in clusters_by_size(index, int(index.max()) + 1):
            piece = Piece(place, chosen, filters, weight, rank)
            done = _direct(piece, metric)
            if done is None:
                pieces.append(piece)
            else:
                solved.append((piece, done))
    finished = _finished(len(layers), pieces, on_layer)
    found = [*solved, *single_filters([p for p in pieces if p.size == 1], options, finished)]
    found += iterate([piece for piece in pieces if piece.size > 1], options, finished)
    return [
        _assemble(weight, index, rank, [pair for pair in found if pair[0].layer == place])
        for place, (weight, index, rank, _) in enumerate(layers)
    ]


def _per_layer(given: object, layers: int, name: str) -> list[Any]:
    """One value per layer of an argument that may be a single one."""
    values = list(given) if isinstance(given, Sequence) else [given] * layers
    if len(values) != layers:
        raise DecompositionError(f"Got {len(values)} {name} for {layers} weights; give one per weight.")
    return values


def _finished(layers: int, pieces: Sequence[Piece], on_layer: Callable[[], None] | None) -> Callable[[Piece], None]:
    """Tell of the layers that need no iterations; return what is to be told of every piece that is done."""
    left = Counter(piece.layer for piece in pieces)

    def finished(piece: Piece) -> None:
        left[piece.layer] -= 1
        if on_layer is not None and not left[piece.layer]:
            on_layer()

    if on_layer is not None:
        for _ in range(layers - len(left)):
            on_layer()
    return finished


def _direct(piece: Piece, metric: Tensor | None) -> PieceResult | None:
    """Solve what needs no iterations; None for the rest."""
    full = full_components(piece.size, piece.weight.shape[1], piece.weight.shape[2:])
    pointwise = piece.weight.shape[2:].numel() == 1
    if not pointwise and piece.rank < full:
        return None
    scaled, exponent = unit_scale(piece.filters_of_clusters(), dims=piece.weight.dim())
    if pointwise:
        moment = None if metric is None else unit_scale(metric.to(scaled.device), dims=2)[0]
        terms = truncated_svd(scaled, min(piece.rank, full), metric=moment)
    else:
        terms = exact_terms(scaled)
    no = torch.zeros(len(scaled), dtype=torch.bool, device=scaled.device)
    return PieceResult(terms, exponent.flatten(), 0, no)


def _assemble(weight: Tensor, index: Tensor, rank: int, parts: Sequence[tuple[Piece, PieceResult]]) -> CoupledResult:
    """Put the clusters of a layer together; what a small cluster does not need stays zero."""
    clusters, device = int(index.max()) + 1, weight.device
    shapes = [(clusters, rank, length) for length in weight.shape[1:]]
    zeros = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in (*shapes, (len(weight), rank))]
    factors = CoupledFactors(*zeros, index)
    exponent, fallback = torch.zeros_like(index[:clusters]), torch.zeros(clusters, dtype=torch.bool, device=device)
    for piece, (terms, powers, _, broken) in parts:
        found = terms.mix.shape[2]
        for factor, part in zip(factors[:-2], terms[:-1], strict=True):
            factor[piece.clusters, :found] = part
        factors.mix[piece.filters.flatten(), :found] = terms.mix.flatten(0, 1)
        exponent[piece.clusters], fallback[piece.clusters] = powers, broken
    factors = factors.balanced()
    largest = _largest_component(factors, weight, exponent)
    factors = factors.times_power_of_two(exponent)
    nmse = factors.nmse(weight)
    energy = unit_scale(weight, dims=weight.dim())[0].flatten(1).square().sum(1)
    total = float(energy.sum())
    layer = float(torch.where(energy > 0, nmse * energy, 0.0).sum()) / total if total else 0.0
    return CoupledResult(factors, nmse, layer, max(part.sweeps for _, part in parts), largest, fallback)


def _largest_component(factors: CoupledFactors, weight: Tensor, exponent: Tensor) -> float:
    """Largest norm of a component over that of its cluster's weight; the factors are those before the exponents."""
    scaled = times_power_of_two(weight.double(), -exponent[factors.cluster].reshape(-1, *(1,) * (weight.dim() - 1)))
    energy = torch.zeros(factors.clusters, dtype=torch.float64, device=weight.device)
    energy.index_add_(0, factors.cluster, scaled.flatten(1).square().sum(1))
    value, power = factors.component_norms()
    norm = times_power_of_two(value, power) / torch.where(energy > 0, energy, 1.0).sqrt().unsqueeze(1)
    return float(norm.max())
