"""Spatial SVD: the benchmark's own as the oracle, closed forms, groups, extreme scales, and what is refused."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from norton_plugin.cpd import SpatialFactors, decompose_spatial, full_spatial_rank, spatial_svd
from norton_plugin.errors import DecompositionError

BENCHMARKS = Path(__file__).parents[2] / "tools" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    from comparison_methods import approximate_layer
finally:
    sys.path.remove(str(BENCHMARKS))

SHAPES = [(16, 12, 3, 3), (6, 20, 3, 3), (20, 4, 5, 1), (9, 7, 1, 3), (8, 3, 7, 4), (5, 6, 1, 1)]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_oracle_agrees_at_every_rank(shape):
    weight = gaussian(*shape)
    full = full_spatial_rank(shape[0], shape[1], shape[2:])
    ranks = range(1, full + 1)
    found = decompose_spatial([weight] * full, ranks)
    for rank, result in zip(ranks, found, strict=True):
        expected = approximate_layer(weight, rank, method="svd_spatial")
        torch.testing.assert_close(result.factors.reconstruct(), expected.weight, rtol=1e-9, atol=1e-12)
        assert result.layer_nmse == pytest.approx(expected.nmse, rel=1e-9, abs=1e-24)
        assert sum(factor.numel() for factor in result.factors) == expected.parameters
    assert found[-1].layer_nmse < 1e-28 < found[-2].layer_nmse


@pytest.mark.parametrize("shape", SHAPES)
def test_the_two_convolutions_compute_what_the_rebuilt_weight_computes(shape):
    rank = full_spatial_rank(shape[0], shape[1], shape[2:]) // 2 + 1
    factors = decompose_spatial([gaussian(*shape)], [rank])[0].factors
    x = gaussian(2, shape[1], 9, 8, seed=1)
    rows = nn.functional.conv2d(x, factors.vertical.unsqueeze(3))
    found = nn.functional.conv2d(rows, factors.horizontal.unsqueeze(2))
    torch.testing.assert_close(found, nn.functional.conv2d(x, factors.reconstruct()), rtol=1e-10, atol=1e-12)


def test_groups_are_decomposed_one_by_one():
    weight = gaussian(12, 5, 3, 3)
    found = decompose_spatial([weight], [4], groups=[3])[0]
    assert found.factors.vertical.shape == (12, 5, 3) and found.factors.horizontal.shape == (12, 4, 3)
    assert (found.factors.groups, found.factors.rank, found.factors.components) == (3, 4, 12)
    for group, part in enumerate(weight.chunk(3)):
        alone = decompose_spatial([part], [4])[0].factors
        own = SpatialFactors(*(factor.chunk(3)[group] for factor in found.factors))
        torch.testing.assert_close(own.reconstruct(), alone.reconstruct(), rtol=1e-10, atol=1e-12)


def test_layers_of_equal_and_other_shapes_share_a_call():
    weights = [gaussian(8, 6, 3, 3, seed=seed) for seed in range(3)] + [gaussian(4, 6, 3, 3), gaussian(8, 3, 3, 3)]
    groups = [1, 2, 1, 1, 2]
    together = decompose_spatial(weights, [3] * 5, groups=groups)
    for weight, count, result in zip(weights, groups, together, strict=True):
        alone = decompose_spatial([weight], [3], groups=[count])[0]
        assert all(torch.equal(one, other) for one, other in zip(result.factors, alone.factors, strict=True))
        assert torch.equal(result.nmse, alone.nmse)


def test_nmse_is_by_filter_and_of_the_layer():
    weight = gaussian(10, 8, 3, 3)
    result = decompose_spatial([weight], [5])[0]
    rest = (weight - result.factors.reconstruct()).flatten(1).square().sum(1)
    energy = weight.flatten(1).square().sum(1)
    torch.testing.assert_close(result.nmse, rest / energy)
    assert result.layer_nmse == pytest.approx(float(rest.sum() / energy.sum()), rel=1e-12)


def test_factors_are_balanced_ordered_and_of_one_sign():
    factors = decompose_spatial([gaussian(10, 8, 3, 3)], [7])[0].factors
    norms = [factors.vertical.flatten(1).norm(dim=1), factors.horizontal.transpose(0, 1).flatten(1).norm(dim=1)]
    torch.testing.assert_close(*norms)
    assert (norms[0].diff() < 0).all()
    flat = factors.vertical.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()
    turned = decompose_spatial([-gaussian(10, 8, 3, 3)], [7])[0].factors
    torch.testing.assert_close(turned.vertical, factors.vertical)
    torch.testing.assert_close(turned.horizontal, -factors.horizontal)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1.0, 1e160, 1e300])
def test_any_finite_scale_gives_the_same_error(scale):
    weight = gaussian(8, 6, 3, 3)
    found, plain = (decompose_spatial([w], [4])[0] for w in (weight * scale, weight))
    torch.testing.assert_close(found.nmse, plain.nmse, rtol=1e-6, atol=1e-12)
    assert all(factor.isfinite().all() for factor in found.factors)


def test_zero_filters_zero_layers_and_fewer_components_than_asked_for():
    weight = gaussian(8, 6, 3, 3)
    weight[3] = 0
    found = decompose_spatial([weight, torch.zeros_like(weight), weight[:1].expand(8, -1, -1, -1)], [5, 5, 9])
    assert not found[0].factors.horizontal[3].any() and found[0].nmse[3] == 0
    assert not any(factor.any() for factor in found[1].factors)
    assert found[1].layer_nmse == 0 and not found[1].nmse.any()
    assert found[2].layer_nmse < 1e-28 and int(found[2].factors.vertical.flatten(1).any(1).sum()) == 3


def test_a_failing_svd_is_replaced_by_eigenvectors(monkeypatch):
    weights = [gaussian(8, 6, 3, 3), gaussian(3, 20, 3, 3)]
    expected = decompose_spatial(weights, [5, 5])

    def fails(*_, **__):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(spatial_svd.torch.linalg, "svd", fails)
    for one, other in zip(decompose_spatial(weights, [5, 5]), expected, strict=True):
        torch.testing.assert_close(one.factors.reconstruct(), other.factors.reconstruct(), rtol=1e-8, atol=1e-10)


def test_half_precision_weights_are_decomposed_in_double():
    weight = gaussian(8, 6, 3, 3).bfloat16()
    result = decompose_spatial([weight], [18])[0]
    assert result.factors.vertical.dtype == torch.float64 and result.layer_nmse < 1e-28


@pytest.mark.parametrize(
    ("weight", "rank", "groups", "message"),
    [
        (gaussian(8, 6, 3, 3), 0, 1, "an integer from 1 to 18, where the spatial SVD is already exact"),
        (gaussian(8, 6, 3, 3), 19, 1, "Rank 19 was asked"),
        (gaussian(8, 6, 3, 3), 13, 2, "in 2 group.s.; it must be an integer from 1 to 12"),
        (gaussian(8, 6, 3, 3), 2, 3, "3 groups were given for 8 filters"),
        (gaussian(8, 6, 3, 3), True, 1, "Rank True was asked.*an integer from 1 to 18"),
        (gaussian(8, 6, 3, 3), 2, True, "True groups were given"),
        (gaussian(8, 6, 3), 1, 1, r"Expected a non-empty floating weight \(N, C, Kh, Kw\)"),
        (torch.full((2, 2, 3, 3), float("nan")), 1, 1, "NaN or infinite"),
    ],
)
def test_what_is_refused(weight, rank, groups, message):
    with pytest.raises(DecompositionError, match=message):
        decompose_spatial([weight], [rank], groups=[groups])


def test_unequal_numbers_and_a_foreign_weight_are_refused():
    with pytest.raises(DecompositionError, match="2 weights, 1 ranks and 2 numbers of groups"):
        decompose_spatial([gaussian(4, 4, 3, 3)] * 2, [1])
    factors = decompose_spatial([gaussian(4, 4, 3, 3)], [1])[0].factors
    with pytest.raises(DecompositionError, match=r"stand for \(4, 4, 3, 3\)"):
        factors.nmse(gaussian(4, 5, 3, 3))
