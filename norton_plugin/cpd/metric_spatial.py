"""A spatial SVD fitted to the outputs of a layer instead of its weight (docs/method.md, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from norton_plugin.cpd.metric import OutputMetric, cholesky
from norton_plugin.cpd.spatial_factors import SpatialFactors

# Steps of conjugate gradients on the vertical factor in a sweep.
_STEPS = 10


def fit_spatial_under(
    factors: SpatialFactors, metric: OutputMetric, *, sweeps: int = 4, tolerance: float = 1e-3
) -> SpatialFactors:
    """Lower the output error of a spatial SVD; the result is never worse than what came in.

    Block coordinate descent: the horizontal factor is solved for exactly, the vertical one by conjugate gradients.

    Args:
        factors: Where to start.
        metric: Of the layer; ``second`` positive definite (`OutputMetric.towards`).
        sweeps: Most sweeps.
        tolerance: A fit is done when a sweep lowered the error by less than this share of itself.

    Returns:
        Float64 factors of the same shapes.
    """
    start = factors.to(dtype=torch.float64)
    precision = metric.fitting_precision
    own, found = metric.to(precision), factors.to(dtype=precision)
    best = _error(found, own)
    for _ in range(sweeps):
        trial = _with_horizontal(found, own)
        trial = _with_vertical(trial, own)
        trial = _with_horizontal(trial, own)
        error = _error(trial, own)
        if not error < best:
            break
        done = best - error < tolerance * best
        found, best = trial, error
        if done:
            break
    found = found.to(dtype=torch.float64)
    return found if _error(found, metric) < _error(start, metric) else start


def _error(factors: SpatialFactors, metric: OutputMetric) -> float:
    return float(metric.errors(factors.reconstruct().flatten(1)).sum())


def _with_horizontal(factors: SpatialFactors, metric: OutputMetric) -> SpatialFactors:
    """Solve for the horizontal factor: every filter is a sum of the vertical kernels, each at Kw places."""
    groups, rank, (_, channels, height) = factors.groups, factors.rank, factors.vertical.shape
    width = factors.horizontal.shape[2]
    basis = factors.vertical.new_zeros(groups, rank, width, channels, height, width)
    for place in range(width):
        basis[:, :, place, :, :, place] = factors.vertical.view(groups, rank, channels, height)
    rows = basis.reshape(groups, rank * width, -1)  # (G, R Kw, D)
    gram = rows @ metric.second @ rows.mT
    target = metric.cross.view(groups, -1, rows.shape[2]) @ rows.mT  # (G, n, R Kw)
    solved = torch.cholesky_solve(target.mT, cholesky(gram)).mT
    return factors._replace(horizontal=solved.reshape(-1, rank, width))


def _with_vertical(factors: SpatialFactors, metric: OutputMetric) -> SpatialFactors:
    """Make a few steps of conjugate gradients on the vertical factor, in which the error is quadratic."""
    weight = factors.reconstruct()
    residual = _transposed(factors, (metric.cross - metric.times(weight.flatten(1))).view_as(weight))
    direction, value = residual, factors.vertical
    for _ in range(_STEPS):
        change = factors._replace(vertical=direction).reconstruct()
        image = _transposed(factors, metric.times(change.flatten(1)).view_as(change))
        curvature = float((direction * image).sum())
        slope = float((direction * residual).sum())
        if curvature <= 0 or slope <= 0:
            break
        value = value + slope / curvature * direction
        following = residual - slope / curvature * image
        momentum = float(following.square().sum() / residual.square().sum())
        residual, direction = following, following + momentum * direction
    return factors._replace(vertical=value)


def _transposed(factors: SpatialFactors, rows: Tensor) -> Tensor:
    """Apply the transpose of the map from the vertical factor to the weight: (N, C, Kh, Kw) to (M, C, Kh)."""
    groups, rank = factors.groups, factors.rank
    split = rows.unflatten(0, (groups, -1))  # (G, n, C, Kh, Kw)
    horizontal = factors.horizontal.unflatten(0, (groups, -1))  # (G, n, R, Kw)
    return torch.einsum("gnchw,gnrw->grch", split, horizontal).reshape(groups * rank, *factors.vertical.shape[1:])
