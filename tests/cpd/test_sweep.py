"""The batch-last algebra against torch.linalg, and what one sweep promises."""

import pytest
import torch
from torch import Tensor

from norton_plugin.cpd.starts import random_starts, structured_start
from norton_plugin.cpd.sweep import contract, cross_gram, khatri_rao, project, ridge_inverse, sweep, trace
from norton_plugin.cpd.unfolding import gram_of_filters


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(7, 12, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def start() -> tuple[Tensor, Tensor]:
    vertical, horizontal = random_starts(7, kernel_size=(3, 5), rank=4, count=1, seed=1)
    return vertical[:, :, 0], horizontal[:, :, 0]


def test_contract_is_matrix_multiplication() -> None:
    left, right = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[[5.0], [6.0]], [[7.0], [8.0]]])
    assert contract(left, right)[..., 0].tolist() == [[19.0, 22.0], [43.0, 50.0]]
    assert trace(left).tolist() == [5.0]


def test_khatri_rao_columns_are_kronecker_products(start: tuple[Tensor, Tensor]) -> None:
    product = khatri_rao(*start)
    torch.testing.assert_close(product[:, 2, 3], torch.kron(start[0][:, 2, 3], start[1][:, 2, 3]))


def test_ridge_inverse(start: tuple[Tensor, Tensor]) -> None:
    gram = cross_gram(start[0]) * cross_gram(start[1])
    shifted = gram.permute(2, 0, 1) + 1e-3 * torch.eye(4, dtype=torch.float64)  # unit columns: mean diagonal 1
    found = ridge_inverse(gram.clone(), ridge=1e-3).permute(2, 0, 1)
    torch.testing.assert_close(found, torch.linalg.inv(shifted))


def test_gram_of_filters(weight: Tensor) -> None:
    unfolded = weight.flatten(2)
    expected = unfolded.transpose(1, 2) @ unfolded / weight.square().sum((1, 2, 3))[:, None, None]
    torch.testing.assert_close(gram_of_filters(weight).permute(2, 0, 1), expected, rtol=1e-13, atol=1e-16)


def test_gram_of_filters_is_the_same_bit_for_bit_in_pieces() -> None:
    weight = torch.randn(33, 300, 3, 3, generator=torch.Generator().manual_seed(0))
    pieces = torch.cat([gram_of_filters(weight[begin : begin + 5]) for begin in range(0, 33, 5)], dim=2)
    assert torch.equal(gram_of_filters(weight), pieces)
    assert torch.equal(gram_of_filters(weight[:, torch.arange(299, -1, -1)]), pieces)


def test_project_explains_what_least_squares_explains(weight: Tensor, start: tuple[Tensor, Tensor]) -> None:
    explained = project(gram_of_filters(weight), *start, ridge=1e-12)[2]
    kernel = khatri_rao(*start).permute(2, 0, 1)
    head = torch.linalg.lstsq(kernel, weight.flatten(2).transpose(1, 2)).solution
    error = (kernel @ head - weight.flatten(2).transpose(1, 2)).square().sum((1, 2))
    torch.testing.assert_close(1 - explained, error / weight.square().sum((1, 2, 3)))


def test_sweeps_never_lower_the_fit(weight: Tensor, start: tuple[Tensor, Tensor]) -> None:
    gram, history = gram_of_filters(weight), []
    vertical, horizontal = start
    for _ in range(30):
        vertical, horizontal, explained = sweep(gram, vertical, horizontal, ridge=1e-10)
        history.append(explained)
    gains = torch.stack(history).diff(dim=0)
    assert gains.min() > -1e-9
    assert gains.sum(0).min() > 1e-2
    torch.testing.assert_close(vertical.norm(dim=0), torch.ones(4, 7, dtype=torch.float64))


def test_structured_start_beats_random_ones(weight: Tensor, start: tuple[Tensor, Tensor]) -> None:
    gram = gram_of_filters(weight)
    structured = structured_start(gram, kernel_size=(3, 5), rank=4)
    assert (project(gram, *structured, ridge=1e-10)[2] > project(gram, *start, ridge=1e-10)[2]).all()


def test_random_starts_depend_on_the_seed_alone() -> None:
    first, again, other = (random_starts(5, kernel_size=(3, 3), rank=2, count=2, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 2, 2, 5)
