"""tools/benchmarks/comparison_methods.py: the oracle, the layer-wise methods, equal parameters, any scale."""

import pytest
import tensorly
import torch
from torch import Tensor

from norton_plugin.cpd import decompose_filters
from norton_plugin.errors import DecompositionError

LAYER_METHODS = ("layer_cp", "svd_channels", "svd_spatial", "tucker2")


@pytest.fixture(scope="module")
def methods(load_tool):
    return load_tool("benchmarks/comparison_methods.py")


@pytest.fixture(params=["random", "smooth"])
def weight(request: pytest.FixtureRequest) -> Tensor:
    """Independent entries, or filters with the decaying spectrum and correlated positions of trained ones."""
    generator = torch.Generator().manual_seed(0)
    entries = torch.randn(12, 16, 3, 3, generator=generator, dtype=torch.float64)
    if request.param == "random":
        return entries
    blur = torch.tensor([[1.0, 0.6, 0.3], [0.6, 1.0, 0.6], [0.3, 0.6, 1.0]], dtype=torch.float64)
    decay = torch.arange(1, 17, dtype=torch.float64).rsqrt()
    return torch.einsum("nchw,hi,wj,c->ncij", entries, blur, blur, decay)


@pytest.mark.parametrize("rank", [1, 3])
def test_als_is_no_worse_than_tensorly(methods, weight: Tensor, rank: int) -> None:
    weight = weight[:3]
    ours = decompose_filters(weight, rank).nmse
    theirs = methods.decompose_parafac(weight, rank, sweeps=60).nmse
    assert ours.mean() <= theirs.mean() * (1 + 1e-6)
    # Filter by filter either may end in the better minimum, but never by much.
    assert (ours <= theirs * 1.05).all()


def test_parafac_zero_filter_and_backend(methods, weight: Tensor) -> None:
    backend = tensorly.get_backend()
    weight = weight[:2].clone()
    weight[0] = 0
    result = methods.decompose_parafac(weight, 2, sweeps=20)
    assert tensorly.get_backend() == backend
    assert result.nmse[0] == 0
    assert 0 < result.nmse[1] < 1
    assert result.factors.head.shape == (2, 2, 16)


def test_parameters_literal(methods) -> None:
    shape = (8, 4, 3, 5)
    assert methods.filter_parameters(shape, 2) == 2 * 8 * 12
    assert {name: method.parameters(shape, 2) for name, method in methods.LAYER_METHODS.items()} == {
        "layer_cp": 2 * 20,
        "tucker2": 8 * 2 + 4 * 1 + 2 * 1 * 15,
        "svd_channels": 2 * (8 + 60),
        "svd_spatial": 2 * (12 + 40),
    }


@pytest.mark.parametrize("method", ["svd_channels", "svd_spatial", "tucker2"])
def test_layer_methods_are_exact_at_full_rank(methods, weight: Tensor, method: str) -> None:
    found = methods.approximate_layer(weight, methods.LAYER_METHODS[method].largest_rank((12, 16, 3, 3)), method=method)
    torch.testing.assert_close(found.weight, weight)
    assert found.nmse < 1e-20


def test_layer_cp_recovers_a_planted_layer(methods) -> None:
    generator = torch.Generator().manual_seed(1)
    modes = [torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in (6, 5, 3, 3)]
    planted = torch.einsum("nr,cr,hr,wr->nchw", *modes)
    assert methods.approximate_layer(planted, 1, method="layer_cp").nmse > 1e-2
    assert methods.approximate_layer(planted, 2, method="layer_cp").nmse < 1e-5


@pytest.mark.parametrize("method", ["svd_channels", "svd_spatial"])
def test_svd_methods_have_the_error_of_the_dropped_values(methods, weight: Tensor, method: str) -> None:
    matrix = weight.flatten(1) if method == "svd_channels" else weight.permute(1, 2, 0, 3).reshape(48, 36)
    values = torch.linalg.svdvals(matrix).square()
    found = methods.approximate_layer(weight, 5, method=method)
    assert found.nmse == pytest.approx(float(values[5:].sum() / values.sum()), rel=1e-9)


def test_approximate_layer_filter_wise(methods, weight: Tensor) -> None:
    found = methods.approximate_layer(weight, 2, method="als")
    energy = weight.flatten(1).square().sum(1)
    errors = decompose_filters(weight, 2).nmse
    assert found.nmse == pytest.approx(float((errors * energy).sum() / energy.sum()))
    assert found.parameters == 2 * 12 * 22


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_rank_for_parameters_is_the_largest_that_fits(methods, method: str) -> None:
    shape = (16, 16, 3, 3)
    rank = methods.rank_for_parameters(shape, 700, method=method)
    count = methods.LAYER_METHODS[method].parameters
    assert count(shape, rank) <= 700 < count(shape, rank + 1)
    assert methods.rank_for_parameters(shape, 3, method=method) == 0


def test_unknown_names_and_ranks(methods, weight: Tensor) -> None:
    with pytest.raises(DecompositionError, match="'hosvd'.*als, parafac, layer_cp, tucker2"):
        methods.approximate_layer(weight, 2, method="hosvd")
    with pytest.raises(DecompositionError, match="'als'"):
        methods.rank_for_parameters((4, 4, 3, 3), 10, method="als")
    with pytest.raises(DecompositionError, match="Rank 13.*from 1 to 12"):
        methods.approximate_layer(weight, 13, method="svd_channels")


@pytest.mark.parametrize("method", ["als", "parafac", *LAYER_METHODS])
def test_bad_weights_are_refused_by_all(methods, weight: Tensor, method: str) -> None:
    weight = weight.clone()
    weight[1, 0, 0, 0] = float("nan")
    with pytest.raises(DecompositionError, match="NaN"):
        methods.approximate_layer(weight, 2, method=method)


@pytest.mark.parametrize("scale", [1e-290, 1e290])
def test_parafac_of_scaled_weights(methods, weight: Tensor, scale: float) -> None:
    plain = methods.decompose_parafac(weight[:2], 2)
    scaled = methods.decompose_parafac(weight[:2] * scale, 2)
    torch.testing.assert_close(scaled.nmse, plain.nmse, rtol=1e-3, atol=0)
    _same(scaled.factors.reconstruct(), plain.factors.reconstruct(), scale, rtol=1e-2)


@pytest.mark.parametrize("scale", [1e-290, 1e290])
@pytest.mark.parametrize("method", ["als", *LAYER_METHODS])
def test_every_method_on_scaled_weights(methods, weight: Tensor, method: str, scale: float) -> None:
    plain, scaled = (methods.approximate_layer(w, 2, method=method) for w in (weight, weight * scale))
    assert scaled.nmse == pytest.approx(plain.nmse, rel=1e-6) and 0.01 < plain.nmse < 1
    _same(scaled.weight, plain.weight, scale, rtol=1e-5)


def _same(result: Tensor, expected: Tensor, scale: float, *, rtol: float) -> None:
    """``result == scale * expected``, compared where both are near one."""
    assert result.isfinite().all()
    torch.testing.assert_close(result / scale, expected, rtol=0, atol=rtol * float(expected.abs().max()))
