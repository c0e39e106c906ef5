"""Batched ALS against closed forms, planted solutions and its own invariances."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from norton_plugin.cpd import CPDFactors, decompose_filters, decompose_layers, solve
from norton_plugin.errors import DecompositionError


@pytest.fixture
def gaussian() -> Callable[..., Tensor]:
    """Weights with independent normal entries."""

    def make(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return make


@pytest.fixture
def planted(gaussian: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Weights whose filters have exactly the rank asked for."""

    def make(n: int, c: int, kh: int, kw: int, rank: int) -> Tensor:
        return CPDFactors(
            gaussian(n, rank, c), gaussian(n, rank, kh, seed=1), gaussian(n, rank, kw, seed=2)
        ).reconstruct()

    return make


@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (5, 1), (5, 3), (1, 1)])
def test_full_rank_is_exact(gaussian: Callable[..., Tensor], kernel: tuple[int, int]) -> None:
    weight = gaussian(6, 10, *kernel)
    result = decompose_filters(weight, kernel[0] * kernel[1])
    torch.testing.assert_close(result.factors.reconstruct(), weight, rtol=1e-12, atol=1e-12)
    assert result.sweeps == 0
    assert result.nmse.max() < 1e-28


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((16, 20, 3, 3), 1),
        ((16, 20, 3, 3), 2),
        ((16, 20, 3, 3), 3),
        ((8, 3, 7, 7), 2),
        ((8, 30, 5, 3), 3),
        ((8, 2, 3, 3), 2),
    ],
)
def test_planted_rank_is_recovered(planted: Callable[..., Tensor], shape: tuple[int, ...], rank: int) -> None:
    result = decompose_filters(planted(*shape, rank), rank, restarts=4, sweeps=1000, tolerance=1e-9, ridge=1e-10)
    assert result.nmse.max() < 1e-8
    assert result.nmse.median() < 1e-11
    assert not result.fallback.any()


@pytest.mark.parametrize("kernel", [(1, 7), (7, 1)])
def test_one_dimensional_kernels_reach_the_truncated_svd(
    gaussian: Callable[..., Tensor], kernel: tuple[int, int]
) -> None:
    weight = gaussian(5, 12, *kernel)
    values = torch.linalg.svdvals(weight.flatten(2)).square()
    expected = values[:, 3:].sum(1) / values.sum(1)
    torch.testing.assert_close(decompose_filters(weight, 3).nmse, expected, rtol=1e-6, atol=0)


def test_rank_one_of_a_single_channel_is_the_leading_singular_pair(gaussian: Callable[..., Tensor]) -> None:
    weight = gaussian(40, 1, 3, 3)
    values = torch.linalg.svdvals(weight[:, 0]).square()
    torch.testing.assert_close(
        decompose_filters(weight, 1, tolerance=1e-12).nmse,
        values[:, 1:].sum(1) / values.sum(1),
        rtol=1e-6,
        atol=0,
    )


def test_reported_nmse_is_that_of_the_factors(gaussian: Callable[..., Tensor]) -> None:
    weight = gaussian(7, 11, 3, 3)
    result = decompose_filters(weight, 2)
    error = (result.factors.reconstruct() - weight).flatten(1).square().sum(1)
    torch.testing.assert_close(result.nmse, error / weight.flatten(1).square().sum(1))


def test_nmse_falls_with_the_rank(gaussian: Callable[..., Tensor]) -> None:
    weight = gaussian(12, 24, 3, 3)
    errors = torch.stack([decompose_filters(weight, rank, sweeps=60).nmse for rank in range(1, 10)])
    assert (errors[1:] < errors[:-1]).all()


def test_more_starts_help_on_average(gaussian: Callable[..., Tensor]) -> None:
    weight = gaussian(64, 24, 3, 3)
    means = [float(decompose_filters(weight, 4, restarts=count).nmse.mean()) for count in (1, 3, 8)]
    assert means[0] > means[1] > means[2]


def test_same_seed_same_factors_whatever_the_chunk(gaussian: Callable[..., Tensor]) -> None:
    weight = gaussian(16, 16, 3, 3)
    whole = decompose_filters(weight, 3, seed=5)
    again = decompose_filters(weight, 3, seed=5)
    pieces = decompose_filters(weight, 3, seed=5, chunk_bytes=70_000)
    single = decompose_filters(weight, 3, seed=5, chunk_bytes=1)
    other = decompose_filters(weight, 3, seed=6)
    for mode in range(3):
        assert torch.equal(whole.factors[mode], again.factors[mode])
        torch.testing.assert_close(pieces.factors[mode], whole.factors[mode], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(single.factors[mode], whole.factors[mode], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(other.factors.head, whole.factors.head)


def test_global_random_state_is_left_alone(gaussian: Callable[..., Tensor]) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    decompose_filters(gaussian(4, 5, 3, 3), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_layers_equal_each_filter_batch_alone(gaussian: Callable[..., Tensor]) -> None:
    weights = [
        gaussian(9, 5, 3, 3),
        gaussian(6, 20, 3, 3, seed=1),
        gaussian(4, 8, 1, 5, seed=2),
        gaussian(3, 7, 3, 3),
    ]
    ranks = [2, 2, 3, 9]
    together = decompose_layers(weights, ranks, seed=2)
    for weight, rank, result in zip(weights, ranks, together, strict=True):
        alone = decompose_filters(weight, rank, seed=2)
        assert result.factors.rank == rank
        torch.testing.assert_close(result.nmse, alone.nmse, rtol=1e-9, atol=1e-14)
        for mode in range(3):
            torch.testing.assert_close(result.factors[mode], alone.factors[mode], rtol=1e-6, atol=1e-9)


def test_layers_of_one_chunk_may_differ_in_channels(gaussian: Callable[..., Tensor]) -> None:
    weights = [gaussian(12, 4, 3, 3), gaussian(12, 64, 3, 3, seed=1)]
    wide = decompose_layers(weights, 3)
    narrow = decompose_layers(weights, 3, chunk_bytes=100_000)
    for left, right in zip(wide, narrow, strict=True):
        torch.testing.assert_close(left.nmse, right.nmse, rtol=1e-9, atol=1e-14)


def test_zero_filter_gets_zero_factors(gaussian: Callable[..., Tensor]) -> None:
    weight = gaussian(4, 6, 3, 3)
    weight[2] = 0
    result = decompose_filters(weight, 2)
    assert all(torch.equal(factor[2], torch.zeros_like(factor[2])) for factor in result.factors)
    assert result.nmse[2] == 0
    assert (result.nmse[[0, 1, 3]] > 0).all()
    assert all(factor.isfinite().all() for factor in result.factors)


def test_rank_above_the_rank_of_the_filter(planted: Callable[..., Tensor]) -> None:
    result = decompose_filters(planted(6, 8, 3, 3, 1), 4)
    assert result.nmse.max() < 1e-12
    assert all(factor.isfinite().all() for factor in result.factors)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e140])
def test_scale_does_not_matter(gaussian: Callable[..., Tensor], scale: float) -> None:
    weight = gaussian(5, 6, 3, 3)
    torch.testing.assert_close(
        decompose_filters(weight * scale, 2).nmse, decompose_filters(weight, 2).nmse, rtol=1e-3, atol=0
    )


def test_factors_are_balanced_and_survive_half_precision(gaussian: Callable[..., Tensor]) -> None:
    weight = gaussian(16, 32, 3, 3) * 0.01
    result = decompose_filters(weight, 3)
    norms = torch.stack([factor.norm(dim=2) for factor in result.factors])
    torch.testing.assert_close(norms[0], norms[1])
    torch.testing.assert_close(norms[0], norms[2])
    half = result.factors.to(dtype=torch.float16).nmse(weight)
    assert (half - result.nmse).abs().max() < 1e-3


def test_ridge_keeps_terms_from_cancelling_each_other() -> None:
    # x o x o y + x o y o x + y o x o x: rank 3, but the limit of rank-2 sums of two ever larger, opposite terms.
    x, y = torch.eye(2, dtype=torch.float64)
    weight = sum(torch.einsum("a,b,c->abc", *modes) for modes in ((x, x, y), (x, y, x), (y, x, x))).unsqueeze(0)
    loose, firm = (decompose_filters(weight, 2, sweeps=2000, tolerance=0, ridge=r) for r in (1e-12, 1e-6))
    assert loose.factors.head.abs().max() > 2 * firm.factors.head.abs().max()
    assert firm.nmse[0] < 1e-2
    assert firm.factors.to(dtype=torch.bfloat16).nmse(weight)[0] < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_are_accepted(gaussian: Callable[..., Tensor], dtype: torch.dtype) -> None:
    weight = gaussian(6, 8, 3, 3).to(dtype)
    result = decompose_filters(weight, 2)
    assert result.factors.head.dtype == torch.float64
    torch.testing.assert_close(result.nmse, decompose_filters(weight.double(), 2).nmse)


def test_breakdown_falls_back_to_the_start_and_says_so(
    gaussian: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = solve.sweep
    weight = gaussian(3, 6, 3, 3)
    mark = weight[1].square().sum(0)[0, 0] / weight[1].square().sum()

    def broken(gram: Tensor, *args: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
        vertical, horizontal, explained = sound(gram, *args, ridge=ridge)
        sick = (gram[0, 0] - mark).abs() < 1e-12
        return torch.where(sick, torch.nan, vertical), horizontal, explained

    healthy = decompose_filters(weight, 2, restarts=1)
    monkeypatch.setattr(solve, "sweep", broken)
    result = decompose_filters(weight, 2, restarts=1)
    assert result.fallback.tolist() == [False, True, False]
    assert result.nmse[[0, 2]].tolist() == pytest.approx(healthy.nmse[[0, 2]].tolist())
    assert healthy.nmse[1] < result.nmse[1] < 1


def test_gradients_do_not_leak(gaussian: Callable[..., Tensor]) -> None:
    result = decompose_filters(torch.nn.Parameter(gaussian(3, 4, 3, 3)), 2)
    assert not any(factor.requires_grad for factor in result.factors)


@pytest.mark.parametrize("rank", [0, -1, 10, 2.0, True])
def test_bad_rank(gaussian: Callable[..., Tensor], rank: int) -> None:
    with pytest.raises(DecompositionError, match=rf"Rank {rank}.*Kh\*Kw = 9"):
        decompose_filters(gaussian(2, 4, 3, 3), rank)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(gaussian: Callable[..., Tensor], value: float) -> None:
    weight = gaussian(4, 4, 3, 3)
    weight[2, 1, 0, 0] = value
    with pytest.raises(DecompositionError, match="1 of 4 filters.*first is filter 2"):
        decompose_filters(weight, 2)


@pytest.mark.parametrize(
    "weight", [torch.zeros(3, 3), torch.zeros(0, 3, 3, 3), torch.zeros(2, 2, 3, 3, dtype=torch.int8)]
)
def test_bad_weight(weight: Tensor) -> None:
    with pytest.raises(DecompositionError, match="floating weight"):
        decompose_filters(weight, 1)


@pytest.mark.parametrize(
    "option",
    [{"restarts": 0}, {"sweeps": 0}, {"tolerance": -1.0}, {"ridge": 0.0}, {"ridge": 1.0}, {"chunk_bytes": 0}],
)
def test_bad_option(gaussian: Callable[..., Tensor], option: dict[str, float]) -> None:
    with pytest.raises(DecompositionError, match=next(iter(option))):
        decompose_filters(gaussian(2, 4, 3, 3), 2, **option)


def test_number_of_ranks(gaussian: Callable[..., Tensor]) -> None:
    with pytest.raises(DecompositionError, match="2 ranks for 1 weights"):
        decompose_layers([gaussian(2, 4, 3, 3)], [1, 2])


@pytest.mark.gpu
def test_cuda_agrees_with_cpu(gaussian: Callable[..., Tensor]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    weight = gaussian(32, 16, 3, 3)
    result = decompose_filters(weight.cuda(), 3)
    assert result.factors.head.is_cuda
    # Starts are equal; eigenvector signs and rounding differ, so an odd filter may end in another minimum.
    assert abs(float(result.nmse.mean()) - float(decompose_filters(weight, 3).nmse.mean())) < 2e-3
