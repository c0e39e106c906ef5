"""Factors shared within clusters: what they rebuild, how they are balanced, and their error."""

import pytest
import torch
from torch import Tensor

from norton_plugin.cpd import CoupledFactors, CPDFactors
from norton_plugin.cpd.coupled_factors import clusters_by_size
from norton_plugin.errors import DecompositionError

UNEQUAL = torch.tensor([2, 0, 1, 0, 0, 2, 1])


def make(
    cluster: Tensor, *, rank: int = 3, channels: int = 5, kernel: tuple[int, int] = (3, 2), seed: int = 0
) -> CoupledFactors:
    generator = torch.Generator().manual_seed(seed)
    clusters = int(cluster.max()) + 1
    shapes = [(clusters, rank, channels), (clusters, rank, kernel[0]), (clusters, rank, kernel[1])]
    parts = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (*shapes, (len(cluster), rank))]
    return CoupledFactors(*parts, cluster)


def rebuilt_one_by_one(factors: CoupledFactors) -> Tensor:
    rows = []
    for n, k in enumerate(factors.cluster.tolist()):
        parts = (factors.mix[n], factors.head[k], factors.vertical[k], factors.horizontal[k])
        rows.append(torch.einsum("r,rc,rh,rw->chw", *parts))
    return torch.stack(rows)


def norms_of_components(factors: CoupledFactors) -> list[Tensor]:
    mix = torch.stack([factors.mix[factors.cluster == k].norm(dim=0) for k in range(factors.clusters)])
    return [*(factor.norm(dim=2) for factor in factors[:3]), mix]


def test_sizes() -> None:
    factors = make(UNEQUAL)
    assert (factors.clusters, factors.rank, factors.components, factors.num_filters) == (3, 3, 9, 7)


@pytest.mark.parametrize("cluster", [UNEQUAL, torch.zeros(4).long(), torch.tensor([1, 0, 2]), torch.arange(8) % 4])
def test_reconstruct_sums_the_components_of_the_own_cluster(cluster: Tensor) -> None:
    factors = make(cluster)
    torch.testing.assert_close(factors.reconstruct(), rebuilt_one_by_one(factors))


def test_one_filter_per_cluster_is_the_filter_wise_cpd() -> None:
    factors = make(torch.arange(6))._replace(mix=torch.ones(6, 3, dtype=torch.float64))
    plain = CPDFactors(*factors[:3])
    torch.testing.assert_close(factors.reconstruct(), plain.reconstruct())
    for mode, expected in zip(factors.balanced()[:3], plain.balanced(), strict=True):
        torch.testing.assert_close(mode, expected, rtol=1e-12, atol=0)


def test_gradients_reach_every_factor() -> None:
    factors = make(UNEQUAL)
    leaves = [factor.requires_grad_() for factor in factors[:4]]
    CoupledFactors(*leaves, UNEQUAL).reconstruct().square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().min() > 0 for leaf in leaves)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-290, 1e290])
def test_balanced_has_equal_norms_and_the_same_weight(scale: float) -> None:
    factors = make(UNEQUAL)
    factors = factors._replace(head=factors.head * scale, mix=factors.mix / 1e3)
    balanced = factors.balanced()
    norms = norms_of_components(balanced)
    for norm in norms[1:]:
        torch.testing.assert_close(norm, norms[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(balanced.reconstruct(), factors.reconstruct(), rtol=1e-10, atol=1e-12 * scale)


def test_kernels_of_one_position_keep_ones() -> None:
    factors = make(UNEQUAL, kernel=(1, 1))
    balanced = factors.balanced()
    assert (balanced.vertical == 1).all() and (balanced.horizontal == 1).all()
    norms = norms_of_components(balanced)
    torch.testing.assert_close(norms[3], norms[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(balanced.reconstruct(), factors.reconstruct())


def test_one_filter_per_cluster_keeps_a_mix_of_ones() -> None:
    factors = make(torch.tensor([2, 0, 1]))
    balanced = factors.balanced()
    assert (balanced.mix == 1).all()
    norms = norms_of_components(balanced)
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(norms[2], norms[0], rtol=1e-10, atol=0)
    torch.testing.assert_close(balanced.reconstruct(), factors.reconstruct())


@pytest.mark.parametrize("mode", range(4))
def test_a_component_with_a_zero_vector_becomes_zero(mode: int) -> None:
    factors = make(torch.zeros(4).long())
    factors[mode][..., 1 if mode == 3 else slice(None)].mul_(1.0 if mode < 3 else 0.0)
    if mode < 3:
        factors[mode][0, 1] = 0
    balanced = factors.balanced()
    assert all((factor[0, 1] == 0).all() for factor in balanced[:3])
    assert (balanced.mix[:, 1] == 0).all()
    assert all(factor.isfinite().all() for factor in balanced)
    torch.testing.assert_close(balanced.reconstruct(), factors.reconstruct())


def test_times_power_of_two_multiplies_the_clusters() -> None:
    factors = make(UNEQUAL).balanced()
    exponent = torch.tensor([3, -5, 100])
    found = factors.times_power_of_two(exponent)
    expected = factors.reconstruct() * (2.0**exponent)[UNEQUAL].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(found.reconstruct(), expected, rtol=1e-10, atol=0)
    norms = norms_of_components(found)
    torch.testing.assert_close(norms[3], norms[0], rtol=1e-10, atol=0)


def test_nmse_of_every_filter() -> None:
    factors = make(UNEQUAL)
    weight = factors.reconstruct()
    weight[3] *= 2
    weight[5] = 0
    expected = torch.tensor([0, 0, 0, 0.25, 0, torch.inf, 0], dtype=torch.float64)
    torch.testing.assert_close(factors.nmse(weight), expected, rtol=1e-12, atol=1e-28)


def test_nmse_at_extreme_scales() -> None:
    factors = make(UNEQUAL)
    weight = factors.reconstruct() * 2
    for exponent in (-1000, 900):
        shift = torch.full((3,), exponent)
        scaled = factors.balanced().times_power_of_two(shift)
        found = scaled.nmse(weight * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2))
        torch.testing.assert_close(found, torch.full((7,), 0.25).double(), rtol=1e-9, atol=0)


def test_nmse_refuses_another_shape() -> None:
    with pytest.raises(DecompositionError, match=r"\(7, 5, 3, 3\), these factors stand for \(7, 5, 3, 2\)"):
        make(UNEQUAL).nmse(torch.zeros(7, 5, 3, 3))


def test_component_norms() -> None:
    factors = make(UNEQUAL)
    value, exponent = factors.component_norms()
    norms = norms_of_components(factors)
    torch.testing.assert_close(value * 2.0**exponent, norms[0] * norms[1] * norms[2] * norms[3])


def test_casting_leaves_the_clusters_alone() -> None:
    half = make(UNEQUAL).to(dtype=torch.bfloat16)
    assert {factor.dtype for factor in half[:4]} == {torch.bfloat16}
    assert half.cluster.dtype == torch.int64
    assert half.balanced().head.dtype == torch.bfloat16


def test_clusters_sorted_by_size() -> None:
    found = [(a.tolist(), b.tolist()) for a, b in clusters_by_size(UNEQUAL, 3)]
    assert found == [([1, 2], [[2, 6], [0, 5]]), ([0], [[1, 3, 4]])]
