"""Components shared within clusters: closed forms, planted solutions, invariances, and tensorly as the oracle."""

from pathlib import Path

import pytest
import tensorly
import torch
from safetensors.torch import load_file
from tensorly.decomposition import parafac
from torch import Tensor

from norton_plugin.cpd import CoupledFactors, coupled_solve, decompose_coupled, decompose_filters, full_components
from norton_plugin.errors import DecompositionError

PAIRS = torch.arange(12) % 6


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(shape: tuple[int, int, int, int], clusters: int, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight made of shared components, and the cluster of every filter."""
    n, c, kh, kw = shape
    cluster = torch.arange(n) % clusters
    parts = [gaussian(clusters, rank, d, seed=seed + i) for i, d in enumerate((c, kh, kw))]
    return CoupledFactors(*parts, gaussian(n, rank, seed=seed + 9), cluster).reconstruct(), cluster


def trained_like(n: int, c: int, *, seed: int = 0) -> Tensor:
    """Low-rank plus noise, smooth kernels: the spectrum of trained layers."""
    low = planted((n, c, 3, 3), 1, n // 2, seed=seed)[0]
    return low / low.norm() + 0.5 * torch.nn.functional.normalize(gaussian(n, c, 3, 3, seed=seed + 1), dim=(0, 1, 2, 3))


def best_parafac(weight: Tensor, rank: int) -> float:
    """Error of the best of three random starts of tensorly."""
    errors = []
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        for seed in range(3):
            cp = parafac(weight.double(), rank, n_iter_max=100, init="random", tol=1e-8, random_state=seed)
            errors.append(float((tensorly.cp_to_tensor(cp) - weight).square().sum() / weight.square().sum()))
    return min(errors)


@pytest.mark.parametrize(
    ("weight", "rank"),
    [
        pytest.param(trained_like(16, 16), 9, id="trained 16"),
        pytest.param(trained_like(32, 32), 34, id="trained 32"),
        pytest.param(trained_like(24, 64), 40, id="wide"),
        pytest.param(gaussian(32, 32, 3, 3), 17, id="random"),
        pytest.param(gaussian(16, 16, 3, 3, seed=1), 40, id="over-complete"),
        pytest.param(gaussian(20, 3, 7, 7, seed=2), 12, id="stem"),
        pytest.param(gaussian(12, 20, 1, 5, seed=3), 9, id="one-dimensional"),
        pytest.param(gaussian(4, 40, 5, 3, seed=4), 5, id="few filters"),
    ],
)
def test_no_worse_than_the_best_of_three_of_tensorly(weight: Tensor, rank: int) -> None:
    result = decompose_coupled([weight], rank)[0]
    assert result.layer_nmse <= best_parafac(weight, rank)


@pytest.mark.parametrize(("weight", "rank"), [(trained_like(32, 32, seed=3), 72), (gaussian(24, 40, 3, 3), 80)])
def test_many_components_are_as_near_in_fewer_sweeps(
    weight: Tensor, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = decompose_coupled([weight], rank, sweeps=300, tolerance=1e-5)[0]
    assert quick.sweeps == 180
    assert quick.layer_nmse <= best_parafac(weight, rank)
    monkeypatch.setattr(coupled_solve, "MANY", 1000)  # the small ridge alone
    slow = decompose_coupled([weight], rank, sweeps=300, tolerance=1e-5)[0]
    assert slow.sweeps == 300
    assert quick.layer_nmse < 1.005 * slow.layer_nmse
    monkeypatch.undo()
    monkeypatch.setattr(coupled_solve, "_FIRST_RIDGE", 0.0)  # as few sweeps without a larger ridge
    assert decompose_coupled([weight], rank, sweeps=300)[0].layer_nmse > 1.005 * quick.layer_nmse


def test_large_clusters_get_fewer_sweeps_and_are_no_worse_than_tensorly() -> None:
    weight = gaussian(96, 96, 3, 3)
    result = decompose_coupled([weight], 98, sweeps=300, tolerance=1e-5)[0]
    assert 30 <= result.sweeps < 100
    assert result.layer_nmse <= best_parafac(weight, 98)


def test_sweeps_of_many_components_by_size() -> None:
    small, large = 32 * 32 * 9 * 72, 512 * 512 * 9 * 768
    assert [coupled_solve.sweeps_of_many(300, products) for products in (small, large)] == [180, 30]
    assert coupled_solve.sweeps_of_many(3000, large) == 300
    assert [coupled_solve.sweeps_of_many(sweeps, large) for sweeps in (1, 12, 60)] == [1, 12, 30]


@pytest.mark.parametrize("name", ["layer1.1.conv1", "layer2.1.conv2", "layer3.2.conv1"])
def test_no_worse_than_tensorly_on_trained_weights(shared_data: Path, name: str) -> None:
    weight = load_file(shared_data / "weights" / "cifar10_resnet20.safetensors")[f"{name}.weight"]
    result = decompose_coupled([weight], len(weight))[0]
    assert result.layer_nmse <= best_parafac(weight, len(weight))


def test_clusters_are_no_worse_than_tensorly_on_each() -> None:
    weight, cluster = trained_like(24, 16), torch.arange(24) % 3
    result = decompose_coupled([weight], 3 * 8, clusters=[cluster])[0]
    for k in range(3):
        part = weight[cluster == k]
        error = (result.factors.reconstruct() - weight)[cluster == k].square().sum() / part.square().sum()
        assert float(error) <= best_parafac(part, 8)


@pytest.mark.parametrize("shape", [(16, 20, 3, 3), (12, 6, 5, 3), (30, 8, 1, 5), (40, 3, 3, 3), (4, 80, 3, 3)])
@pytest.mark.parametrize("clusters", [1, 2])
def test_shared_components_are_recovered(shape: tuple[int, int, int, int], clusters: int) -> None:
    weight, cluster = planted(shape, clusters, 3)
    result = decompose_coupled([weight], 3 * clusters, clusters=[cluster], sweeps=500)[0]
    assert result.layer_nmse < 1e-8
    assert not result.fallback.any()


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (2, 20, 3, 3), (30, 2, 3, 3), (3, 2, 7, 2), (6, 4, 1, 1)])
@pytest.mark.parametrize("clusters", [1, 2])
def test_full_is_exact(shape: tuple[int, int, int, int], clusters: int) -> None:
    weight, cluster = gaussian(*shape), torch.arange(shape[0]) % clusters
    full = full_components(-(-shape[0] // clusters), shape[1], shape[2:])
    result = decompose_coupled([weight], clusters * full, clusters=[cluster])[0]
    assert result.layer_nmse < 1e-28 and result.sweeps == 0
    torch.testing.assert_close(result.factors.reconstruct(), weight)


def test_full_components() -> None:
    assert full_components(64, 64, (3, 3)) == 576
    assert full_components(1, 64, (3, 3)) == 9
    assert full_components(10, 4, (1, 1)) == 4
    with pytest.raises(DecompositionError, match="at least one"):
        full_components(0, 4, (3, 3))


def test_one_filter_per_cluster_is_decompose_filters() -> None:
    weight = gaussian(8, 12, 3, 3)
    result = decompose_coupled([weight], 16, clusters=[torch.arange(8)])[0]
    expected = decompose_filters(weight, 2)
    assert (result.factors.mix == 1).all()
    for mode, other in zip(result.factors[:3], expected.factors, strict=True):
        torch.testing.assert_close(mode, other, rtol=1e-12, atol=1e-15)


def test_coarser_clusters_with_all_components_are_no_worse() -> None:
    """Halves of a cluster, each with its components, are a solution of the whole: more freedom, no more error."""
    weight = trained_like(24, 16)
    fine, coarse = torch.arange(24) % 4, torch.arange(24) % 2
    errors = [decompose_coupled([weight], 24, clusters=[index])[0].layer_nmse for index in (fine, coarse, None)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("clusters", [1, 3])
def test_pointwise_is_the_truncated_svd(clusters: int) -> None:
    weight, cluster = gaussian(12, 20, 1, 1), torch.arange(12) % clusters
    result = decompose_coupled([weight], 3 * clusters, clusters=[cluster])[0]
    lost = sum(torch.linalg.svdvals(weight[cluster == k].flatten(1))[3:].square().sum() for k in range(clusters))
    assert result.layer_nmse == pytest.approx(float(lost / weight.square().sum()), rel=1e-10)
    assert (result.factors.vertical == 1).all() and (result.factors.horizontal == 1).all()
    torch.testing.assert_close(result.factors.head.norm(dim=2)[0], result.factors.mix[cluster == 0].norm(dim=0))


def test_pointwise_under_a_metric_has_the_least_output_error() -> None:
    weight, inputs = gaussian(10, 16, 1, 1), gaussian(200, 16, seed=1) * torch.logspace(0, -2, 16).double()
    metric = inputs.mT @ inputs / 200

    def output_error(found: Tensor) -> float:
        return float(((found - weight).flatten(1) @ inputs.mT).square().sum())

    plain = decompose_coupled([weight], 4)[0].factors.reconstruct()
    result = decompose_coupled([weight], 4, metrics=[metric])[0].factors.reconstruct()
    outputs = weight.flatten(1) @ inputs.mT
    assert output_error(result) == pytest.approx(float(torch.linalg.svdvals(outputs)[4:].square().sum()), rel=1e-6)
    assert output_error(result) < 0.5 * output_error(plain)


def test_reported_errors_are_those_of_the_factors() -> None:
    weight, cluster = gaussian(10, 8, 3, 3), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    result = decompose_coupled([weight], 9, clusters=[cluster])[0]
    difference = (result.factors.reconstruct() - weight).flatten(1).square().sum(1)
    torch.testing.assert_close(result.nmse, difference / weight.flatten(1).square().sum(1))
    assert result.layer_nmse == pytest.approx(float(difference.sum() / weight.square().sum()), rel=1e-12)
    value, exponent = result.factors.component_norms()
    norms = torch.stack([weight[cluster == k].norm() for k in range(3)])
    expected = float((value * 2.0**exponent / norms.unsqueeze(1)).max())
    assert result.largest_component == pytest.approx(expected, rel=1e-9)


def test_order_of_filters_changes_the_order_of_the_mix_only() -> None:
    weight = trained_like(24, 16)
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    first = decompose_coupled([weight], 12)[0].factors
    other = decompose_coupled([weight[shuffle]], 12)[0].factors
    expected = first.reconstruct()[shuffle]
    assert float((other.reconstruct() - expected).square().sum() / expected.square().sum()) < 1e-6


def test_layers_together_are_as_good_as_alone() -> None:
    weights = [trained_like(12, 10), trained_like(12, 10, seed=5), gaussian(12, 7, 1, 1), gaussian(12, 10, 3, 3)]
    clusters = [None, PAIRS, torch.arange(12) % 3, PAIRS]
    together = decompose_coupled(weights, [8, 12, 6, 18], clusters=clusters, restarts=1, sweeps=60)
    for weight, cluster, count, result in zip(weights, clusters, (8, 12, 6, 18), together, strict=True):
        alone = decompose_coupled([weight], count, clusters=[cluster], restarts=1, sweeps=60, chunk_bytes=1)[0]
        assert result.factors.components == count
        torch.testing.assert_close(result.nmse, alone.nmse, rtol=1e-4, atol=1e-6)


def test_equal_seeds_give_equal_factors_and_leave_the_global_state_alone() -> None:
    weight = gaussian(12, 10, 3, 3)
    before = torch.get_rng_state()
    first, again, other = (decompose_coupled([weight], 7, seed=seed)[0].factors for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.head, other.head)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30, 1e-300, 1e300])
def test_scale_of_the_weight_does_not_matter(scale: float) -> None:
    weight = gaussian(8, 6, 3, 3)
    plain, scaled = decompose_coupled([weight, weight * scale], 6)
    torch.testing.assert_close(scaled.nmse, plain.nmse, rtol=1e-3, atol=1e-9)
    assert scaled.largest_component == pytest.approx(plain.largest_component, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_floating_type(dtype: torch.dtype) -> None:
    weight = gaussian(8, 6, 3, 3).to(dtype)
    result = decompose_coupled([weight], 10)[0]
    assert result.factors.head.dtype == torch.float64
    rounded = result.factors.to(dtype=dtype).to(dtype=torch.float64).nmse(weight)
    torch.testing.assert_close(rounded, result.nmse, rtol=2e-2, atol=1e-2)


def test_zero_weights_filters_and_clusters() -> None:
    weight = gaussian(12, 5, 3, 3)
    weight[PAIRS == 2] = 0
    weight[1] = 0
    zero, mixed, pointwise = decompose_coupled(
        [torch.zeros(12, 5, 3, 3), weight, weight[..., :1, :1]], [4, 12, 6], clusters=[None, PAIRS, PAIRS]
    )
    assert (zero.factors.reconstruct() == 0).all() and zero.layer_nmse == 0 and zero.largest_component == 0
    for result in (mixed, pointwise):
        assert all(factor.isfinite().all() for factor in result.factors)
        assert (result.factors.head[2] == 0).all()
        assert (result.nmse[[1, 2, 8]] == 0).all() and result.nmse.isfinite().all()
        assert (result.factors.reconstruct()[1] == 0).all()


def test_degenerate_tensors_keep_bounded_components() -> None:
    """The border rank of ``a a b + a b a + b a a`` is two: its best approximations of rank two do not exist."""
    a, b = torch.eye(3, dtype=torch.float64)[:2]
    words = ((a, a, b), (a, b, a), (b, a, a))
    cube = sum(torch.einsum("a,b,c->abc", *word) for word in words).unsqueeze(3)
    loose, tight = (decompose_coupled([cube], 2, ridge=ridge, sweeps=500, tolerance=0)[0] for ridge in (1e-9, 0.1))
    assert loose.largest_component > 5
    assert tight.largest_component < 0.1**-0.5
    assert tight.layer_nmse < 0.1


@pytest.mark.parametrize(
    ("components", "clusters", "message"),
    [
        (0, None, r"0 components .* from 1 to 108"),
        (109, None, r"109 components .* from 1 to 108"),
        (8, torch.arange(12) % 3, r"multiple of 3 from 3 to 108"),
        (True, None, "True components"),
        (6, torch.zeros(11).long(), r"shape \(11,\).* for 12 filters"),
        (6, torch.zeros(12), "type torch.float32"),
        (6, torch.arange(12) % 3 + 1, "names 3 clusters between 1 and 3"),
        (6, torch.arange(12) % 3 * 2, "names 3 clusters between 0 and 4"),
        (6, torch.arange(12) % 3 - 1, "names 3 clusters between -1 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(components: int, clusters: Tensor | None, message: str) -> None:
    with pytest.raises(DecompositionError, match=message):
        decompose_coupled([gaussian(12, 20, 3, 3)], components, clusters=[clusters])


def test_bad_weights_metrics_and_options_are_refused() -> None:
    weight, point = gaussian(6, 4, 3, 3), gaussian(6, 4, 1, 1)
    spoiled = weight.clone()
    spoiled[2, 1, 0, 0] = torch.nan
    calls: list[tuple[Tensor, dict[str, object], str]] = [
        (spoiled, {}, "1 of 6 filters hold NaN"),
        (weight, {"metrics": [torch.eye(4)]}, "1x1 kernels only"),
        (point, {"metrics": [torch.eye(3)]}, r"expected a floating\s+\(4, 4\)"),
        (point, {"metrics": [torch.ones(4, 4).triu()]}, "not symmetric"),
        (weight, {"clusters": [None, None]}, "Got 2 clusters for 1 weights"),
        (weight, {"ridge": 0.0}, "ridge is 0.0"),
        (weight, {"restarts": 0}, "restarts is 0"),
    ]
    for given, options, message in calls:
        with pytest.raises(DecompositionError, match=message):
            decompose_coupled([given], 2, **options)
