"""Weights near the ends of their dtype: c * W decomposes to c times what W decomposes to, at the same NMSE."""

import math

import pytest
import torch
from torch import Tensor

from norton_plugin.cpd import CPDFactors, decompose_filters, decompose_layers, exact_factors
from norton_plugin.cpd.scaling import root_of_power, times_power_of_two, unit_scale

DOUBLES = [1e-300, 1e-280, 1e-200, 1e-100, 1e-20, 1e20, 1e100, 1e150, 1e200, 1e300]
SINGLES = [1e-37, 1e-30, 1e30, 1e37]
POWERS = [2.0**-1000, 2.0**-700, 2.0**-1, 2.0**3, 2.0**700, 2.0**1000]


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _same(result: Tensor, expected: Tensor, scale: float, *, rtol: float) -> None:
    """``result == scale * expected``, compared where both are near one."""
    assert result.isfinite().all()
    torch.testing.assert_close(result.double() / scale, expected, rtol=0, atol=rtol * float(expected.abs().max()))


@pytest.mark.parametrize("rank", [1, 2, 9])
@pytest.mark.parametrize("scale", DOUBLES)
def test_scaled_doubles(weight: Tensor, scale: float, rank: int) -> None:
    plain, scaled = decompose_filters(weight, rank), decompose_filters(weight * scale, rank)
    _same(scaled.factors.reconstruct(), plain.factors.reconstruct(), scale, rtol=1e-6)
    torch.testing.assert_close(scaled.nmse, plain.nmse, rtol=1e-9, atol=1e-28)
    torch.testing.assert_close(scaled.factors.nmse(weight * scale), plain.nmse, rtol=1e-9, atol=1e-28)
    assert not scaled.fallback.any()


@pytest.mark.parametrize("scale", POWERS)
def test_powers_of_two_change_no_bit_of_the_error(weight: Tensor, scale: float) -> None:
    plain, scaled = decompose_filters(weight, 2), decompose_filters(weight * scale, 2)
    assert torch.equal(scaled.nmse, plain.nmse)
    _same(scaled.factors.reconstruct(), plain.factors.reconstruct(), scale, rtol=1e-14)


@pytest.mark.parametrize("scale", SINGLES)
def test_scaled_singles(weight: Tensor, scale: float) -> None:
    weight = weight.float()
    scaled = (weight.double() * scale).float()
    plain, result = decompose_filters(weight, 2), decompose_filters(scaled, 2)
    torch.testing.assert_close(result.nmse, plain.nmse, rtol=1e-4, atol=0)
    single = result.factors.to(dtype=torch.float32)
    _same(single.reconstruct(), plain.factors.reconstruct(), scale, rtol=1e-4)
    torch.testing.assert_close(single.nmse(scaled), plain.nmse, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["subnormal", "largest"])
def test_the_ends_of_every_dtype(weight: Tensor, dtype: torch.dtype, end: str) -> None:
    info = torch.finfo(dtype)
    exponent = math.frexp(info.smallest_normal * info.eps * 64 if end == "subnormal" else info.max)[1]
    unit = (weight / weight.abs().max() * 0.99).to(torch.float16).double()
    extreme = times_power_of_two(unit, torch.tensor(exponent)).to(dtype)
    assert extreme.isfinite().all() and bool((extreme != 0).any())
    result = decompose_filters(extreme, 2)
    shrunk = unit_scale(extreme, dims=4)[0]
    torch.testing.assert_close(result.nmse, decompose_filters(shrunk, 2).nmse, rtol=1e-9, atol=0)
    assert all(factor.isfinite().all() and factor.to(dtype).isfinite().all() for factor in result.factors)


def test_filters_of_one_layer_may_differ_by_any_factor(weight: Tensor) -> None:
    scales = torch.tensor([1e-300, 1e-150, 1.0, 1e100, 1e250, 0.0], dtype=torch.float64)
    result = decompose_filters(weight * scales[:, None, None, None], 2)
    expected = decompose_filters(weight, 2)
    torch.testing.assert_close(result.nmse[:5], expected.nmse[:5], rtol=1e-6, atol=0)
    assert result.nmse[5] == 0 and all(not factor[5].any() for factor in result.factors)
    for filter_, scale in enumerate(scales[:5].tolist()):
        found, wanted = (r.factors.reconstruct()[filter_] for r in (result, expected))
        _same(found, wanted, scale, rtol=1e-6)


def test_layers_of_different_scales_share_a_batch(weight: Tensor) -> None:
    plain = decompose_filters(weight, 3)
    for result in decompose_layers([weight * 1e-290, weight, weight * 1e290], 3, chunk_bytes=50_000):
        torch.testing.assert_close(result.nmse, plain.nmse, rtol=1e-9, atol=0)


@pytest.mark.parametrize("powers", [(900, -600, -300), (-900, 450, 450), (1000, 0, 0), (300, 300, 300), (0, 0, -1050)])
def test_balanced_whatever_the_norms(powers: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    plain = CPDFactors(*(torch.randn(5, 3, d, generator=generator, dtype=torch.float64) for d in (7, 3, 3)))
    moved = CPDFactors(*(times_power_of_two(f, torch.tensor(p)) for f, p in zip(plain, powers, strict=True)))
    assert all(torch.isfinite(factor).all() for factor in moved)
    for found, factor in zip(moved.balanced(), plain.balanced(), strict=True):
        expected = factor * 2.0 ** (sum(powers) / 3)
        torch.testing.assert_close(found, expected, rtol=1e-12 if min(powers) > -1000 else 1e-3, atol=0)


def test_balancing_carries_gradients() -> None:
    head = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(1, 2, 3, dtype=torch.float64)
    CPDFactors(head, ones, ones).balanced().reconstruct().sum().backward()
    torch.testing.assert_close(head.grad, torch.full_like(head, 9.0))


def test_nmse_of_exact_factors_is_zero_at_any_scale(weight: Tensor) -> None:
    for scale in DOUBLES:
        assert not exact_factors(weight * scale).nmse(weight * scale).any()


def test_unit_scale_is_exact_and_knows_its_ends() -> None:
    values = torch.tensor([[5e-324, 0.0], [1.7976931348623157e308, 1.0], [0.0, 0.0], [-3.0, 1.0]], dtype=torch.float64)
    scaled, exponent = unit_scale(values, dims=1)
    assert exponent.flatten().tolist() == [-1073, 1024, 0, 2]
    assert scaled[:, 0].tolist() == [0.5, 1 - 2.0**-53, 0.0, -0.75]
    assert torch.equal(times_power_of_two(scaled, exponent), values)


def test_cube_roots_of_powers() -> None:
    exponents = torch.arange(-1074, 1025)
    expected = torch.tensor([2.0 ** (e / 3) for e in exponents.tolist()], dtype=torch.float64)
    torch.testing.assert_close(root_of_power(exponents, degree=3), expected, rtol=1e-13, atol=0)
    assert root_of_power(torch.tensor([-3, 0, 30]), degree=3).tolist() == [0.5, 1.0, 1024.0]
