"""Fits in the metric of the outputs, against numpy, closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from norton_plugin.cpd import (
    CoupledFactors,
    CPDFactors,
    OutputMetric,
    decompose_coupled,
    decompose_filters,
    decompose_spatial,
    fit_spatial_under,
    fit_under,
)
from norton_plugin.cpd.metric_terms import Terms


def samples(*, count: int = 400, groups: int = 1, channels: int = 6, kernel: int = 9, filters: int = 8, seed: int = 0):
    """Correlated inputs (M, G, D), a dense weight (N, D) and noisy targets (M, N)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, channels * kernel, channels * kernel, generator=generator, dtype=torch.float64)
    x = torch.einsum(
        "mgd,gde->mge", torch.randn(count, groups, channels * kernel, generator=generator).double(), mixing
    )
    weight = torch.randn(filters, channels * kernel, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, filters, generator=generator, dtype=torch.float64)
    return x, weight, outputs(x, weight) + noise


def outputs(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("mgd,gnd->mgn", x, weight.view(x.shape[1], -1, x.shape[2])).flatten(1)


def metric_of(x: Tensor, target: Tensor) -> OutputMetric:
    count, groups, _ = x.shape
    cross = torch.einsum("mgn,mgd->gnd", target.view(count, groups, -1), x).flatten(0, 1)
    return OutputMetric(torch.einsum("mgd,mge->gde", x, x) / count, cross / count, target.square().mean(0))


@pytest.fixture(name="single_precision")
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit layers of any width as wide ones are."""
    monkeypatch.setattr("norton_plugin.cpd.metric._MOST_INPUTS_IN_DOUBLE", 0)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_error_is_the_mean_squared_error_of_the_outputs(groups):
    x, weight, target = samples(groups=groups)
    metric = metric_of(x, target)
    torch.testing.assert_close(metric.errors(weight), (outputs(x, weight) - target).square().mean(0))
    expected = (outputs(x, weight) - target).square().sum() / target.square().sum()
    assert metric.nmse(weight) == pytest.approx(float(expected))
    scale = torch.rand(8, dtype=torch.float64) + 0.5
    scaled = metric.weighted(scale).errors(weight * scale[:, None])
    torch.testing.assert_close(scaled, metric.errors(weight) * scale.square())


@pytest.mark.parametrize("groups", [1, 2])
def test_the_best_weight_is_that_of_least_squares(groups):
    x, _, target = samples(groups=groups)
    found = metric_of(x, target).best_weight().view(groups, -1, x.shape[2])
    for group in range(groups):
        y = target.view(len(x), groups, -1)[:, group]
        expected = np.linalg.lstsq(x[:, group].numpy(), y.numpy(), rcond=None)[0].T
        np.testing.assert_allclose(found[group].numpy(), expected, rtol=1e-6, atol=1e-8)


def test_the_ridge_is_that_of_more_samples():
    """A ridge towards W0 is least squares with sqrt(eps) I as further inputs, whose targets are those of W0."""
    x, weight, target = samples(count=20)  # fewer samples than unknowns
    metric = metric_of(x, target)
    eps = 0.1 * metric.second[0].diagonal().mean()
    more = torch.eye(x.shape[2], dtype=torch.float64) * (eps * len(x)).sqrt()
    rows = torch.cat([x[:, 0], more]).numpy()
    expected = np.linalg.lstsq(rows, torch.cat([target, more @ weight.T]).numpy(), rcond=None)[0].T
    np.testing.assert_allclose(metric.towards(weight, 0.1).best_weight().numpy(), expected, rtol=1e-6, atol=1e-8)


def test_inputs_of_zero_leave_the_weight_as_it_is():
    x, weight, _ = samples()
    metric = metric_of(x * 0, outputs(x * 0, weight))
    torch.testing.assert_close(metric.towards(weight, 1e-3).best_weight(), weight)


def test_without_kernel_the_fit_is_the_closed_form():
    x, weight, target = samples(channels=12, kernel=1, filters=10)
    metric = metric_of(x, target)
    start = decompose_coupled([weight[:, :, None, None]], 4)[0].factors
    found = fit_under(start, metric).reconstruct().flatten(1)
    # By the symmetric square root instead of Cholesky: the truncated SVD of the whitened best weight.
    values, vectors = torch.linalg.eigh(metric.second[0])
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    left, singular, right = torch.linalg.svd(metric.best_weight() @ root, full_matrices=False)
    expected = (left[:, :4] * singular[:4]) @ right[:4] @ inverse
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert metric.nmse(found) < metric.nmse(start.reconstruct().flatten(1)) * 0.99


def starts(weight: Tensor, level: str, *, groups: int = 1) -> CPDFactors | CoupledFactors:
    weight = weight.view(len(weight), -1, 3, 3)
    if level == "filter":
        return decompose_filters(weight, 2).factors
    cluster = {"layer": None, "clusters": torch.tensor([0, 0, 1, 1, 1, 0, 1, 1]), "groups": torch.arange(8) // 4}[level]
    return decompose_coupled([weight], 10, clusters=[cluster])[0].factors


@pytest.mark.parametrize(
    ("level", "groups"), [("filter", 1), ("filter", 2), ("layer", 1), ("clusters", 1), ("groups", 2)]
)
def test_every_sweep_lowers_the_error(level, groups):
    x, weight, target = samples(groups=groups)
    metric = metric_of(x, target).towards(weight, 1e-4)
    start = starts(weight, level)
    errors = [metric.nmse(start.reconstruct().flatten(1))]
    for sweeps in (1, 2, 4, 8, 16):
        found = fit_under(start, metric, sweeps=sweeps, tolerance=0.0)
        assert [f.shape for f in found] == [f.shape for f in start]
        errors.append(metric.nmse(found.reconstruct().flatten(1)))
    assert all(after < before for before, after in zip(errors, errors[1:], strict=False))
    assert errors[3] < 0.75 * errors[0]
    # The start given back is not worse than itself, and an optimum is left where it is.
    again = fit_under(found, metric, sweeps=1, tolerance=0.0)
    assert metric.nmse(again.reconstruct().flatten(1)) <= errors[-1]


@pytest.mark.parametrize("level", ["filter", "layer"])
def test_full_rank_comes_to_least_squares(level):
    x, weight, target = samples(channels=3, filters=4, count=300)
    metric = metric_of(x, target)
    shaped = weight.view(4, 3, 3, 3)
    start = decompose_filters(shaped, 9).factors if level == "filter" else decompose_coupled([shaped], 27)[0].factors
    found = fit_under(start, metric, sweeps=200, tolerance=0.0).reconstruct().flatten(1)
    assert metric.nmse(found) == pytest.approx(metric.nmse(metric.best_weight()), rel=1e-3)
    assert metric.nmse(found) < metric.nmse(weight)


def test_white_inputs_bring_back_the_plain_decomposition():
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = weight.flatten(1)
    metric = OutputMetric(torch.eye(45, dtype=torch.float64)[None], rows, rows.square().sum(1))
    plain = decompose_filters(weight, 2, sweeps=2000, tolerance=1e-9)
    found = fit_under(plain.factors, metric)
    energy = rows.square().sum()
    assert (
        metric.nmse(found.reconstruct().flatten(1)) <= float((plain.nmse * rows.square().sum(1)).sum() / energy) + 1e-9
    )
    torch.testing.assert_close(found.reconstruct(), plain.factors.reconstruct(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("lengths", [(5, 3, 2), (5, 4), (5, 2, 3, 4)])
def test_the_transpose_is_that_of_the_map(lengths):
    generator = torch.Generator().manual_seed(2)
    factors = tuple(torch.randn(2, 3, length, generator=generator, dtype=torch.float64) for length in lengths)
    terms = Terms(factors, torch.randn(2, 4, 3, generator=generator, dtype=torch.float64))
    rows = torch.randn(2, 4, math.prod(lengths), generator=generator, dtype=torch.float64)
    for place, length in enumerate(lengths):
        value = torch.randn(2, 3, length, generator=generator, dtype=torch.float64)
        forward = (terms.with_factor(place, value).weight() * rows).sum()
        assert float(forward) == pytest.approx(float((value * terms.transposed(place, rows)).sum()))


def test_rounding_that_leaves_a_matrix_indefinite_is_no_trouble():
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second = (rows.T @ rows - 1e-9 * torch.eye(6, dtype=torch.float64))[None]
    assert bool(torch.linalg.cholesky_ex(second)[1].any())
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    metric = OutputMetric(second, torch.zeros_like(weight), torch.ones(4, dtype=torch.float64))
    metric = metric._replace(cross=metric.times(weight))
    assert metric.errors(metric.best_weight() - weight).sub(1).abs().max() < 1e-3
    start = decompose_coupled([weight[:, :, None, None]], 3)[0].factors
    assert all(bool(torch.isfinite(factor).all()) for factor in fit_under(start, metric))


def test_a_dead_channel_and_a_zero_filter_are_no_trouble():
    x, weight, _ = samples()
    x[:, :, :9] = 0  # the first channel
    weight[3] = 0
    metric = metric_of(x, outputs(x, weight)).towards(weight, 1e-4)
    for level in ("filter", "layer"):
        start = starts(weight, level)
        found = fit_under(start, metric)
        assert all(bool(torch.isfinite(f).all()) for f in found)
        assert metric.nmse(found.reconstruct().flatten(1)) < metric.nmse(start.reconstruct().flatten(1))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_spatial_svd_is_fitted_to_the_outputs(groups):
    x, weight, target = samples(groups=groups, filters=8)
    metric = metric_of(x, target)
    start = decompose_spatial([weight.view(8, 6, 3, 3)], [3], groups=[groups])[0].factors
    found = fit_spatial_under(start, metric)
    before, after = (metric.nmse(factors.reconstruct().flatten(1)) for factors in (start, found))
    assert after < 0.7 * before
    # With the vertical factor as it is, no horizontal one is better: least squares on what its kernels give.
    kernels = found.vertical.view(groups, 3, 6, 3)
    error = 0.0
    for group in range(groups):
        inputs = x[:, group].view(len(x), 6, 3, 3)
        seen = torch.einsum("mchw,rch->mrw", inputs, kernels[group]).flatten(1).numpy()
        wanted = target.view(len(x), groups, -1)[:, group].numpy()
        error += float(((seen @ np.linalg.lstsq(seen, wanted, rcond=None)[0] - wanted) ** 2).sum())
    assert after == pytest.approx(error / float(target.square().sum()), rel=1e-6)


def test_a_spatial_svd_of_full_rank_reaches_the_best_weight():
    x, weight, target = samples(filters=4, channels=3)
    metric = metric_of(x, target)
    start = decompose_spatial([weight.view(4, 3, 3, 3)], [9])[0].factors
    found = fit_spatial_under(start, metric, sweeps=40, tolerance=0.0)
    assert metric.nmse(found.reconstruct().flatten(1)) == pytest.approx(metric.nmse(metric.best_weight()), rel=1e-3)


@pytest.mark.parametrize("level", ["filter", "layer", "clusters", "spatial"])
def test_wide_layers_are_fitted_in_single_precision_just_as_well(level, single_precision):
    x, weight, target = samples()
    metric = metric_of(x, target).towards(weight, 1e-3)
    if level == "spatial":
        start, fit = decompose_spatial([weight.view(8, 6, 3, 3)], [4])[0].factors, fit_spatial_under
    else:
        start, fit = starts(weight, level), fit_under
    assert metric.fitting_precision == torch.float32
    found = fit(start, metric)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("norton_plugin.cpd.metric._MOST_INPUTS_IN_DOUBLE", 10**6)
        expected = fit(start, metric)
    assert all(factor.dtype == torch.float64 for factor in found[:3])
    errors = [metric.nmse(factors.reconstruct().flatten(1)) for factors in (start, found, expected)]
    assert errors[1] < 0.9 * errors[0]
    assert errors[1] == pytest.approx(errors[2], rel=1e-2)


def test_factors_without_error_are_given_back_from_single_precision(single_precision):
    x, weight, _ = samples()
    exact = decompose_coupled([weight.view(8, 6, 3, 3)], 54)[0].factors
    metric = metric_of(x, outputs(x, weight))
    found = fit_under(exact, metric)
    assert metric.nmse(found.reconstruct().flatten(1)) <= metric.nmse(exact.reconstruct().flatten(1)) + 1e-15


def test_outputs_can_be_looked_at_alone():
    x, weight, target = samples(groups=2)
    chosen = torch.tensor([1, 3, 4, 6])  # two of each group
    metric = metric_of(x, target)
    some = metric.of_outputs(chosen)
    torch.testing.assert_close(some.errors(weight[chosen]), metric.errors(weight)[chosen])
    torch.testing.assert_close(some.best_weight(), metric.best_weight()[chosen])
