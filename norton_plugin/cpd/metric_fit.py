"""Components fitted to the outputs of a layer instead of its weight (docs/method.md, section 3)."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from norton_plugin.cpd.coupled_factors import CoupledFactors
from norton_plugin.cpd.factors import CPDFactors
from norton_plugin.cpd.metric import OutputMetric, cholesky
from norton_plugin.cpd.metric_low_rank import truncated_under
from norton_plugin.cpd.metric_terms import HEAD, Terms

Factors = TypeVar("Factors", CPDFactors, CoupledFactors)
# Relative to the mean of a diagonal: what keeps systems solvable where components overlap.
_RIDGE = 1e-8
# The same in roundings of the numbers, where these are larger.
_ROUNDING = 30
# The same for the channels' moments, which are whitened: it bounds how much a nearly dead channel is raised.
_CHANNEL_RIDGE = 1e-3
# Most steps of conjugate gradients in a sweep, for the head and for each axis of the kernel; they end earlier where the
# last one lowered the error by less than this share of what all did.
_HEAD_STEPS, _AXIS_STEPS = 8, 3
_LEAST_GAIN = 0.05


def fit_under(factors: Factors, metric: OutputMetric, *, sweeps: int = 6, tolerance: float = 1e-3) -> Factors:
    """Lower the output error of factors; the result is never worse than what came in.

    Block coordinate descent: conjugate gradients on the head and the factors of the kernel's axes in turn, each
    cluster with step lengths of its own, and the mix solved exactly. The channels are whitened first, and the steps
    preconditioned by the overlap of the components, so that a few steps come near each optimum. No step raises the
    error. Without spatial factors and with one cluster per channel group, the optimum has a closed form.

    Args:
        factors: Where to start, of any level.
        metric: Of the layer; ``second`` positive definite (`OutputMetric.towards`).
        sweeps: Most sweeps.
        tolerance: A fit is done when a sweep lowered the error by less than this share of itself.

    Returns:
        Float64 factors of the same shapes, balanced.
    """
    single = isinstance(factors, CPDFactors)
    start = (_as_coupled(factors) if isinstance(factors, CPDFactors) else factors).to(dtype=torch.float64)
    if all(factor.shape[2] == 1 for factor in start.kernel) and start.clusters == len(metric.second):
        found = _closed_form(start, metric)
    else:
        problem = _Problem(start, metric.to(metric.fitting_precision))
        found = problem.leave(problem.descend(problem.enter(start), sweeps=sweeps, tolerance=tolerance))
    before, after = (metric.errors(x.reconstruct().flatten(1)).sum() for x in (start, found))
    found = found if after < before else start
    return _as_single(found) if single else found.balanced()  # type: ignore[return-value]


def _as_coupled(factors: CPDFactors) -> CoupledFactors:
    """Make every filter a cluster of its own."""
    cluster = torch.arange(factors.num_filters, device=factors.head.device)
    return CoupledFactors(*factors, torch.ones_like(factors.head[..., 0]), cluster)


def _as_single(found: CoupledFactors) -> CPDFactors:
    return CPDFactors(found.head * found.mix[..., None], *found.kernel).balanced()


def _closed_form(factors: CoupledFactors, metric: OutputMetric) -> CoupledFactors:
    """Return the truncated SVD of every group."""
    groups = len(metric.second)
    size = factors.num_filters // groups
    heads, mixes = [], []
    for group in range(groups):
        rows = slice(group * size, (group + 1) * size)
        one = OutputMetric(metric.second[group : group + 1], metric.cross[rows], metric.energy[rows])
        mix, head = truncated_under(one, factors.rank)
        heads.append(head)
        mixes.append(mix)
    ones = torch.ones(groups, factors.rank, 1, dtype=torch.float64, device=metric.second.device)
    return CoupledFactors(torch.stack(heads), *[ones] * len(factors.kernel), torch.cat(mixes), factors.cluster)


class _Fit(NamedTuple):
    """Components, and what costs most to compute of them.

    Attributes:
        terms: The components.
        weight: The filters at their places, (K, S, D).
        image: The filters times the second moments of their groups, likewise.
    """

    terms: Terms
    weight: Tensor
    image: Tensor


class _Problem:
    """One layer: filters at the places of their clusters, channels whitened.

    Args:
        factors: For their clusters and shapes.
        metric: Of the layer.
    """

    def __init__(self, factors: CoupledFactors, metric: OutputMetric) -> None:
        self.cluster = factors.cluster
        self.single = factors.clusters == factors.num_filters
        sizes = torch.bincount(factors.cluster, minlength=factors.clusters)
        order = torch.argsort(factors.cluster, stable=True)
        first = sizes.cumsum(0) - sizes
        rank_in_cluster = torch.empty_like(order)
        rank_in_cluster[order] = torch.arange(len(order), device=order.device) - first[factors.cluster[order]]
        self.clusters, self.size = factors.clusters, int(sizes.max())
        self.place = factors.cluster * self.size + rank_in_cluster

        channels = factors.head.shape[2]
        moments = metric.channel_second(channels)
        mean = moments.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(moments.dtype).tiny)
        eye = torch.eye(channels, dtype=moments.dtype, device=moments.device)
        values, vectors = torch.linalg.eigh(moments + _CHANNEL_RIDGE * mean[:, None, None] * eye)
        self.root = (vectors * values.sqrt()[:, None]) @ vectors.mT
        white = (vectors / values.sqrt()[:, None]) @ vectors.mT
        metric = metric.in_channel_basis(white)
        self.white = white
        self.second = metric.second
        self.cross = self._placed(metric.cross)
        self.energy = self._placed(metric.energy[:, None])[..., 0]
        positions = metric.second.shape[1] // channels
        split = metric.second.view(-1, channels, positions, channels, positions)
        self.spatial = split.diagonal(dim1=1, dim2=3).mean((0, -1))

    def _placed(self, rows: Tensor) -> Tensor:
        places = rows.new_zeros(self.clusters * self.size, *rows.shape[1:])
        return places.index_copy(0, self.place, rows).view(self.clusters, self.size, *rows.shape[1:])

    def _per_cluster(self, per_group: Tensor) -> Tensor:
        return per_group.repeat_interleave(self.clusters // len(per_group), 0)

    def enter(self, factors: CoupledFactors) -> Terms:
        """Return factors at their places and with whitened channels."""
        factors = factors.to(dtype=self.root.dtype)
        head = torch.bmm(factors.head, self._per_cluster(self.root))
        return Terms((head, *factors.kernel), self._placed(factors.mix))

    def leave(self, terms: Terms) -> CoupledFactors:
        """Return what ``enter`` was given."""
        head = torch.bmm(terms.head, self._per_cluster(self.white))
        mix = terms.mix.flatten(0, 1)[self.place]
        return CoupledFactors(head, *terms.factors[1:], mix, self.cluster).to(dtype=torch.float64)

    def times(self, rows: Tensor) -> Tensor:
        """Multiply (K, S, D) by the second moments of their groups."""
        groups, length, _ = self.second.shape
        return torch.bmm(rows.reshape(groups, -1, length), self.second).view_as(rows)

    def fit_of(self, terms: Terms) -> _Fit:
        """Return components with what is computed of them."""
        weight = terms.weight()
        return _Fit(terms, weight, self.times(weight))

    def errors(self, fit: _Fit) -> Tensor:
        """Return the errors of all clusters, (K,)."""
        return self.energy.sum(1) + ((fit.image - 2 * self.cross) * fit.weight).sum((1, 2))

    def descend(self, terms: Terms, *, sweeps: int, tolerance: float) -> Terms:
        """Sweep over all factors until the error falls no more."""
        fit = self.fit_of(terms)
        before = float(self.errors(fit).sum())
        for _ in range(sweeps):
            new = fit
            for place in range(len(terms.factors)):
                new = self._step(new, place)
            if not self.single:
                new = self._solve_mix(new)
            fit = self._better(fit, self.fit_of(new.terms))  # computed afresh: roundings of the steps add up
            after = float(self.errors(fit).sum())
            if before - after <= tolerance * abs(after):
                break
            before = after
        return fit.terms

    def _step(self, old: _Fit, place: int) -> _Fit:
        """Improve one factor by preconditioned conjugate gradients, cluster by cluster."""
        terms = old.terms if self.single else old.terms.with_unit_columns()
        value, weight, image = terms.factors[place], old.weight, old.image
        inverse = _inverse(terms.gram(place, self.spatial))
        residual = terms.transposed(place, self.cross - image)
        direction = ready = inverse @ residual
        product = (residual * ready).sum((1, 2))
        gained = 0.0
        for _ in range(_HEAD_STEPS if place == HEAD else _AXIS_STEPS):
            change = terms.with_factor(place, direction).weight()
            pushed = self.times(change)
            curvature = (change * pushed).sum((1, 2))
            length = torch.where(curvature > 0, product / curvature, 0.0)[:, None, None]
            value, weight, image = value + length * direction, weight + length * change, image + length * pushed
            gain = float((length[:, 0, 0] * product).sum())
            gained += gain
            if gain <= _LEAST_GAIN * gained:
                break
            residual = residual - length * terms.transposed(place, pushed)
            ready = inverse @ residual
            again = (residual * ready).sum((1, 2))
            direction = ready + torch.where(product > 0, again / product, 0.0)[:, None, None] * direction
            product = again
        return self._better(old, _Fit(terms.with_factor(place, value), weight, image))

    def _solve_mix(self, old: _Fit) -> _Fit:
        """Solve for how filters mix the components of their clusters."""
        basis = old.terms.basis()
        pushed = self.times(basis)
        mix = self.cross @ basis.mT @ _inverse(pushed @ basis.mT)
        return self._better(old, _Fit(Terms(old.terms.factors, mix), mix @ basis, mix @ pushed))

    def _better(self, old: _Fit, new: _Fit) -> _Fit:
        """Take of every cluster the components of the lower error."""
        better = (self.errors(new) <= self.errors(old))[:, None, None]
        pairs = zip(new.terms.factors, old.terms.factors, strict=True)
        factors = tuple(torch.where(better, x, y) for x, y in pairs)
        terms = Terms(factors, torch.where(better, new.terms.mix, old.terms.mix))
        return _Fit(terms, torch.where(better, new.weight, old.weight), torch.where(better, new.image, old.image))


def _inverse(gram: Tensor) -> Tensor:
    """Invert symmetric positive semidefinite matrices (K, R, R), with a ridge."""
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    mean = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(gram.dtype).tiny)
    ridge = max(_RIDGE, _ROUNDING * torch.finfo(gram.dtype).eps)
    return torch.cholesky_inverse(cholesky(gram + ridge * mean[:, None, None] * eye))
