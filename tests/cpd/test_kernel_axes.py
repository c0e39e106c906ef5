"""Filters of 3-D and 1-D convolutions: 4-way tensors and matrices, by the same ALS; tensorly and the SVD as oracles."""

import copy
import pickle

import pytest
import tensorly
import torch
from tensorly.decomposition import parafac
from torch import Tensor

from norton_plugin.cpd import CoupledFactors, CPDFactors, decompose_coupled, decompose_filters, full_components
from norton_plugin.errors import DecompositionError


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Low-rank plus noise: the spectrum of trained filters."""
    rank = 4
    factors = [gaussian(shape[0], rank, length, seed=seed + place) for place, length in enumerate(shape[1:])]
    low = CPDFactors(*factors).reconstruct()
    noise = gaussian(*shape, seed=seed + 9)
    return low / low.norm() + 0.3 * noise / noise.norm()


def best_parafac(tensor: Tensor, rank: int) -> float:
    """Error of the best of three random starts of tensorly."""
    errors = []
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        for seed in range(3):
            cp = parafac(tensor, rank, n_iter_max=100, init="random", tol=1e-8, random_state=seed)
            errors.append(float((tensorly.cp_to_tensor(cp) - tensor).square().sum() / tensor.square().sum()))
    return min(errors)


@pytest.mark.parametrize(("shape", "rank"), [((3, 8, 3, 3, 3), 1), ((3, 8, 3, 3, 3), 3), ((2, 3, 3, 7, 7), 2)])
def test_4way_filters_are_no_worse_than_the_best_of_three_of_tensorly(shape: tuple[int, ...], rank: int) -> None:
    weight = smooth(*shape)
    found = decompose_filters(weight, rank)
    assert not found.fallback.any()
    for own, single in zip(found.nmse.tolist(), weight, strict=True):
        assert own <= best_parafac(single, rank) * 1.002


@pytest.mark.parametrize(("shape", "rank"), [((8, 6, 3, 3, 3), 8), ((6, 8, 1, 3, 3), 5), ((6, 8, 3, 1, 1), 4)])
def test_5way_layers_are_no_worse_than_the_best_of_three_of_tensorly(shape: tuple[int, ...], rank: int) -> None:
    weight = smooth(*shape)
    assert decompose_coupled([weight], rank)[0].layer_nmse <= best_parafac(weight, rank) * 1.002


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_filters_of_one_axis_reach_the_truncated_svd(rank: int) -> None:
    weight = gaussian(5, 12, 5)
    expected = torch.linalg.svdvals(weight)[:, rank:].square().sum(1) / weight.square().sum((1, 2))
    torch.testing.assert_close(decompose_filters(weight, rank).nmse, expected, rtol=1e-6, atol=1e-12)


def test_axes_of_length_one_change_nothing() -> None:
    """A 3-D kernel of one frame is the 2-D kernel: the same factors, and a depth of one entry."""
    weight = gaussian(4, 6, 3, 3)
    deep, flat = decompose_filters(weight.unsqueeze(2), 2), decompose_filters(weight, 2)
    torch.testing.assert_close(deep.nmse, flat.nmse, rtol=1e-3, atol=0)
    assert deep.factors.fields == ("head", "depth", "vertical", "horizontal") and flat.factors.fields[1] == "vertical"


@pytest.mark.parametrize("kernel", [(2,), (2, 3, 2), (1, 3, 3), (1, 1, 1), (3, 1, 1)])
def test_full_rank_is_exact(kernel: tuple[int, ...]) -> None:
    weight = gaussian(5, 7, *kernel)
    size = weight[0, 0].numel()
    found = decompose_filters(weight, size)
    assert found.sweeps == 0 and found.nmse.max() < 1e-28
    torch.testing.assert_close(found.factors.reconstruct(), weight)
    full = full_components(5, 7, kernel)
    layer = decompose_coupled([weight], full)[0]
    assert layer.layer_nmse < 1e-28
    torch.testing.assert_close(layer.factors.reconstruct(), weight)


@pytest.mark.parametrize("clusters", [1, 3])
def test_planted_components_are_recovered(clusters: int) -> None:
    cluster = torch.arange(12) % clusters
    parts = [gaussian(clusters, 3, length, seed=seed) for seed, length in enumerate((9, 3, 3, 3))]
    weight = CoupledFactors(*parts, gaussian(12, 3, seed=9), cluster).reconstruct()
    found = decompose_coupled([weight], 3 * clusters, clusters=[cluster], sweeps=500)[0]
    assert found.layer_nmse < 1e-8
    torch.testing.assert_close(found.factors.reconstruct(), weight, rtol=1e-3, atol=1e-3)


def test_a_1x1x1_kernel_is_the_truncated_svd() -> None:
    weight = gaussian(10, 8, 1, 1, 1)
    expected = torch.linalg.svdvals(weight.flatten(1))[3:].square().sum() / weight.square().sum()
    found = decompose_coupled([weight], 3)[0]
    assert found.layer_nmse == pytest.approx(float(expected), rel=1e-10) and found.sweeps == 0
    assert all((factor == 1).all() for factor in found.factors.kernel)


def test_factors_are_balanced_at_any_scale() -> None:
    weight = gaussian(3, 5, 3, 3, 2) * 2.0 ** torch.tensor([-900.0, 0.0, 900.0]).double().view(3, 1, 1, 1, 1)
    found = decompose_filters(weight, 2).factors
    norms = torch.stack([torch.frexp(factor).exponent.amax(2) for factor in found])
    assert (norms.amax(0) - norms.amin(0)).max() <= 2
    assert found.nmse(weight).max() < 1


def test_factors_are_found_by_name_and_copied() -> None:
    factors = CPDFactors(*(gaussian(2, 1, length, seed=length) for length in (5, 4, 3, 2)))
    assert [factor.shape[2] for factor in (factors.head, factors.depth, factors.vertical, factors.horizontal)] == [
        5,
        4,
        3,
        2,
    ]
    changed = factors._replace(depth=torch.zeros(2, 1, 4))
    assert isinstance(changed, CPDFactors) and not changed.depth.any() and changed.head is factors.head
    for other in copy.deepcopy(factors), pickle.loads(pickle.dumps(factors)):
        assert type(other) is CPDFactors and all(map(torch.equal, other, factors))


def test_weights_of_other_dimensions_are_refused() -> None:
    for shape in (4, 3), (2, 2, 2, 2, 2, 2):
        with pytest.raises(DecompositionError, match="or of a Conv1d or Conv3d"):
            decompose_filters(gaussian(*shape), 1)
    with pytest.raises(DecompositionError, match="the size of the kernel = 12"):
        decompose_filters(gaussian(2, 2, 3, 2, 2), 13)
