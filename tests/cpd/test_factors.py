"""CPDFactors: literal outer products, balance, errors."""

import pytest
import torch

from norton_plugin.cpd import CPDFactors, exact_factors
from norton_plugin.errors import DecompositionError


@pytest.fixture
def literal() -> CPDFactors:
    """One filter of two channels and a 2x3 kernel, rank 2, small integers."""
    return CPDFactors(
        torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]),
        torch.tensor([[[1.0, 0.0], [1.0, -1.0]]]),
        torch.tensor([[[1.0, 2.0, 3.0], [1.0, 0.0, 1.0]]]),
    )


def test_reconstruct_literal(literal: CPDFactors) -> None:
    expected = torch.tensor([[[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [[3.0, 4.0, 7.0], [-1.0, 0.0, -1.0]]]])
    assert (literal.rank, literal.num_filters) == (2, 1)
    torch.testing.assert_close(literal.reconstruct(), expected, rtol=0, atol=0)


def test_reconstruct_carries_gradients(literal: CPDFactors) -> None:
    head = literal.head.clone().requires_grad_()
    literal._replace(head=head).reconstruct().sum().backward()
    # d(sum)/d(head[0, r, c]) is sum(vertical[r]) * sum(horizontal[r]), for every channel.
    torch.testing.assert_close(head.grad, torch.tensor([[[6.0, 6.0], [0.0, 0.0]]]))


def test_balanced_norms_are_equal_and_weight_is_kept() -> None:
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([1e-8, 1.0, 1e9])
    factors = CPDFactors(
        *(torch.randn(5, 3, d, generator=generator, dtype=torch.float64) * scale[:, None] ** p
          for d, p in ((7, 1.0), (3, -1.0), (3, 0.5)))
    )  # fmt: skip
    balanced = factors.balanced()
    norms = [f.norm(dim=2) for f in balanced]
    assert not torch.allclose(factors.head.norm(dim=2), factors.vertical.norm(dim=2))
    torch.testing.assert_close(norms[0], norms[1])
    torch.testing.assert_close(norms[0], norms[2])
    torch.testing.assert_close(balanced.reconstruct(), factors.reconstruct())


def test_balanced_zero_term_is_zero_not_nan(literal: CPDFactors) -> None:
    balanced = literal._replace(head=torch.zeros_like(literal.head)).balanced()
    assert all(torch.equal(factor, torch.zeros_like(factor)) for factor in balanced)


def test_nmse_literal(literal: CPDFactors) -> None:
    weight = literal.reconstruct()
    weight[0, 0, 1, 1] = 3.0
    # One entry differs by 3; the energy is 90 - 9 + 9 = 14 + 9 + 74 + 2.
    torch.testing.assert_close(literal.nmse(weight), torch.tensor([9 / 99], dtype=torch.float64))


def test_nmse_of_zero_filter(literal: CPDFactors) -> None:
    zero = torch.zeros(1, 2, 2, 3)
    assert literal.nmse(zero).tolist() == [float("inf")]
    assert literal._replace(head=torch.zeros(1, 2, 2)).nmse(zero).tolist() == [0.0]


def test_nmse_rejects_another_shape(literal: CPDFactors) -> None:
    with pytest.raises(DecompositionError, match=r"\(1, 2, 3, 2\).*\(1, 2, 2, 3\)"):
        literal.nmse(torch.zeros(1, 2, 3, 2))


def test_to_casts_all_three(literal: CPDFactors) -> None:
    assert {factor.dtype for factor in literal.to(dtype=torch.float16)} == {torch.float16}
    assert literal.to().head is literal.head


@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (5, 1), (5, 3), (1, 1), (7, 7)])
def test_exact_factors(kernel: tuple[int, int]) -> None:
    weight = torch.randn(4, 6, *kernel, generator=torch.Generator().manual_seed(0))
    factors = exact_factors(weight)
    assert factors.rank == kernel[0] * kernel[1]
    assert torch.equal(factors.reconstruct(), weight)
    assert (factors.vertical.sum(2) == 1).all()
    assert (factors.horizontal.sum(2) == 1).all()


def test_exact_factors_rejects_a_matrix() -> None:
    with pytest.raises(DecompositionError, match=r"\(4, 6\)"):
        exact_factors(torch.zeros(4, 6))
