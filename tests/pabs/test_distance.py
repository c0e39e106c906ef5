"""PABS, vectors, VBD, CSA and their combination."""

import math

import pytest
import torch

from norton_plugin.errors import DecompositionError
from norton_plugin.pabs import (
    combine,
    csa_distance,
    largest_angle_matrix,
    pabs_distance,
    removal_order,
    vbd_distance,
    vector_distance,
)

HALF_PI = math.pi / 2


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cpd(filters, rank, *, dims=(8, 3, 3), seed=0):
    return [draw(filters, rank, dim, seed=seed + k) for k, dim in enumerate(dims)]


def test_sum_of_the_largest_angles():
    factors = cpd(10, 2)
    result = pabs_distance(factors)
    expected = sum(largest_angle_matrix(factor) for factor in factors)
    torch.testing.assert_close(result.matrix, expected, rtol=0, atol=0)
    assert (result.criterion, result.informative, result.notes) == ("pabs", ("head", "vertical", "horizontal"), ())


def test_literal_rank_one_filters():
    head = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 2.0]]])
    vertical = torch.tensor([[[1.0, 0.0, 0.0]], [[-3.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]])
    horizontal = torch.tensor([[[0.0, 1.0, 0.0]]]).expand(3, 1, 3)
    quarter = math.pi / 4
    expected = torch.tensor(
        [[0, quarter, math.pi], [quarter, 0, 3 * quarter], [math.pi, 3 * quarter, 0]], dtype=torch.float64
    )
    torch.testing.assert_close(pabs_distance([head, vertical, horizontal]).matrix, expected, rtol=0, atol=1e-14)


def test_uninformative_factors_are_named():
    result = pabs_distance(cpd(10, 3))
    assert result.informative == ("head",)
    assert [note.split(":")[0] for note in result.notes] == ["vertical", "horizontal"]
    assert "3 components in 3 dimensions" in result.notes[0]
    torch.testing.assert_close(result.matrix, largest_angle_matrix(cpd(10, 3)[0]), rtol=0, atol=0)


def test_without_any_informative_factor_whole_filters_decide():
    factors = cpd(10, 3, dims=(3, 3, 3))
    result = pabs_distance(factors)
    whole = torch.einsum("nra,nrb,nrc->nabc", *factors)
    assert result.criterion == "vectors"
    assert result.informative == ("weight",)
    assert len(result.notes) == 4
    torch.testing.assert_close(result.matrix, vector_distance(whole).matrix, rtol=0, atol=1e-12)
    assert result.matrix.fill_diagonal_(1).min() > 0.01
    weight = draw(10, 3, 3, 3, seed=9)
    given = pabs_distance(factors, weight=weight)
    torch.testing.assert_close(given.matrix, vector_distance(weight).matrix, rtol=0, atol=0)


def test_scaling_and_permutation_of_components_do_not_matter():
    factors = cpd(9, 2)
    scale = draw(9, 2, 1, seed=7)
    swapped = [factors[0] * scale, factors[1] / scale, factors[2]]
    swapped = [factor[:, [1, 0]] for factor in swapped]
    torch.testing.assert_close(pabs_distance(swapped).matrix, pabs_distance(factors).matrix, rtol=0, atol=1e-12)


def test_a_component_that_is_zero_in_one_factor_is_absent_in_all():
    factors = cpd(4, 2)
    factors[0][1, 1] = 0
    result = pabs_distance(factors).matrix
    trimmed = [factor.clone() for factor in factors]
    for factor in trimmed:
        factor[1, 1] = 0
    torch.testing.assert_close(result, pabs_distance(trimmed).matrix, rtol=0, atol=0)


@pytest.mark.parametrize("distance", [vector_distance, vbd_distance, csa_distance])
def test_zero_filters_are_at_distance_zero_and_go_first(distance):
    weight = draw(8, 3, 3, 3)
    weight[2] = 0
    weight[6] = 0
    weight[5] = weight[4]
    matrix = distance(weight).matrix
    assert matrix[2].abs().max() == 0
    assert removal_order(matrix)[:3].tolist() == [6, 2, 5]


def test_zero_filters_go_first_under_pabs():
    factors = cpd(8, 2)
    factors[1][3] = 0  # one zero factor makes the filter zero
    assert pabs_distance(factors).matrix[3].abs().max() == 0
    assert removal_order(pabs_distance(factors))[0] == 3


def test_vectors_are_pabs_of_one_factor():
    weight = draw(12, 7, 1, 1)
    torch.testing.assert_close(
        vector_distance(weight).matrix, pabs_distance([weight.flatten(1).unsqueeze(1)]).matrix, rtol=0, atol=0
    )
    lines = vector_distance(draw(5, 1))
    assert lines.informative == ()
    assert len(lines.notes) == 1
    assert lines.matrix.abs().max() == 0


def test_vbd_literal():
    # variances 2/3, 8/3, 2/3, 0 about the means 2, 4, 2, 5; the covariance of 0 and 1 is 4/3
    weight = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    expected = torch.tensor(
        [[0.0, 0.2, 2.0, 1.0], [0.2, 0.0, 1.8, 1.0], [2.0, 1.8, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]], dtype=torch.float64
    )
    result = vbd_distance(weight)
    torch.testing.assert_close(result.matrix, expected, rtol=0, atol=1e-14)
    assert (result.criterion, result.informative) == ("vbd", ("weight",))


def test_vbd_against_its_definition():
    weight = draw(9, 4, 3, 3)
    rows = weight.flatten(1)
    spread = rows.var(1)
    expected = (rows.unsqueeze(0) - rows.unsqueeze(1)).var(2) / (spread.unsqueeze(0) + spread.unsqueeze(1))
    torch.testing.assert_close(vbd_distance(weight).matrix, expected, rtol=0, atol=1e-13)
    shifted = vbd_distance(weight + draw(9, 1, 1, 1, seed=4)).matrix
    torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-13)


def test_vbd_of_constant_filters_says_nothing():
    result = vbd_distance(torch.tensor([[0.1] * 9, [0.3] * 9, [-7.7] * 9]))
    assert torch.equal(result.matrix, torch.zeros(3, 3, dtype=torch.float64))
    assert result.informative == ()


def test_csa_literal():
    weight = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 3.0], [-2.0, 0.0]])
    expected = torch.tensor(
        [[0.0, 0.5, 1.0, 0.0], [0.5, 0.0, 0.5, 0.5], [1.0, 0.5, 0.0, 1.0], [0.0, 0.5, 1.0, 0.0]], dtype=torch.float64
    )
    result = csa_distance(weight)
    torch.testing.assert_close(result.matrix, expected, rtol=0, atol=1e-14)
    assert result.criterion == "csa"


def test_combine_normalises_each_member():
    small = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]])
    large = 100 * torch.tensor([[0.0, 3.0, 3.0], [3.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    silent = torch.zeros(3, 3)
    by_mean = torch.tensor([[0.0, 2.0, 2.5], [2.0, 0.0, 1.5], [2.5, 1.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(combine([small, large, silent]), by_mean)
    by_max = torch.tensor([[0.0, 4 / 3, 5 / 3], [4 / 3, 0.0, 1.0], [5 / 3, 1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(combine([small, large, silent], normalise="max"), by_max)
    assert torch.equal(combine([silent]), silent.double())
    assert torch.equal(combine([vector_distance(draw(1, 4))]), torch.zeros(1, 1, dtype=torch.float64))


def test_a_single_filter():
    assert torch.equal(pabs_distance(cpd(1, 2)).matrix, torch.zeros(1, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pabs_distance([]), "at least one"),
        (lambda: pabs_distance([draw(3, 2, 4), draw(4, 2, 4)]), "same filters"),
        (lambda: pabs_distance([draw(3, 2, 4), draw(3, 1, 4)]), "same filters"),
        (lambda: pabs_distance(cpd(3, 2), weight=draw(4, 2)), "4 filters"),
        (lambda: pabs_distance(cpd(3, 2), names=["head"]), "1 names came for 3"),
        (lambda: vector_distance(draw(3)), "at least two dimensions"),
        (lambda: vbd_distance(torch.full((2, 2), float("nan"))), "NaN"),
        (lambda: csa_distance(torch.ones(2, 2, dtype=torch.int32)), "int32"),
        (lambda: combine([]), "at least one"),
        (lambda: combine([torch.zeros(2, 2), torch.zeros(3, 3)]), r"\[2, 3\]"),
        (lambda: combine([torch.zeros(2, 2)], normalise="median"), "'median'"),
    ],
)
def test_bad_input_raises(call, words):
    with pytest.raises(DecompositionError, match=words):
        call()
