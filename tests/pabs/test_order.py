"""Removal order: worked by hand, against a slow reference, and on ties."""

import pytest
import torch

from norton_plugin.errors import DecompositionError, RecipeError
from norton_plugin.pabs import keep_indices, removal_order, removal_scores, vector_distance

# Closest pair 0-1 (1): sums 10 and 11, so 0 goes. Then 2-3 (2): sums 5 and 9, so 2 goes. Then 1-3, both 7: 3 goes.
BY_HAND = torch.tensor(
    [[0.0, 1.0, 4.0, 5.0], [1.0, 0.0, 3.0, 7.0], [4.0, 3.0, 0.0, 2.0], [5.0, 7.0, 2.0, 0.0]], dtype=torch.float64
)


def random_distance(count, seed, *, levels=None):
    draw = torch.rand(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if levels is not None:
        draw = (draw * levels).floor() + 1
    return draw.triu(1) + draw.triu(1).T


def slow_order(distance):
    """The rule as it is written down: rescans everything that is left at every removal."""
    table, left, order = distance.tolist(), list(range(len(distance))), []
    while len(left) > 1:
        closest = min(table[i][j] for i in left for j in left if i < j)
        close = [i for i in left if any(i != j and table[i][j] == closest for j in left)]
        removed = min(close, key=lambda i: (sum(table[i][j] for j in left), -i))
        left.remove(removed)
        order.append(removed)
    return order + left


def test_worked_by_hand():
    assert removal_order(BY_HAND).tolist() == [0, 2, 3, 1]
    assert keep_indices(BY_HAND, 2).tolist() == [1, 3]
    assert keep_indices(BY_HAND, 3).tolist() == [1, 2, 3]
    expected = torch.tensor([0.999 / 7, 1.0, 0.999 * 2 / 7 + 0.001 / 3, 0.999 + 0.001 * 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(removal_scores(BY_HAND), expected)


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_slow_reference(seed):
    distance = random_distance(30, seed)
    assert removal_order(distance).tolist() == slow_order(distance)


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_slow_reference_with_many_ties(levels, seed):
    distance = random_distance(24, seed, levels=levels)
    assert removal_order(distance).tolist() == slow_order(distance)


def test_hub_filters_make_every_nearest_neighbour_change():
    distance = random_distance(60, 0) + 1
    distance[10:50] = distance[10:50] * 1e-3
    distance = torch.minimum(distance, distance.T).fill_diagonal_(0)
    assert removal_order(distance).tolist() == slow_order(distance)


@pytest.mark.parametrize("distance", [torch.zeros(9, 9), torch.ones(9, 9).fill_diagonal_(0)])
def test_equal_distances_keep_the_lower_index(distance):
    assert removal_order(distance).tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert keep_indices(distance, 3).tolist() == [0, 1, 2]


def test_rounding_does_not_decide_ties():
    noise = random_distance(20, 3) * 1e-15
    distance = torch.ones(20, 20, dtype=torch.float64).fill_diagonal_(0) + noise
    assert removal_order(distance).tolist() == list(range(19, -1, -1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("levels", [None, 3])
def test_sorting_the_scores_gives_the_order(dtype, levels):
    distance = random_distance(700, 1, levels=levels)
    scores = removal_scores(distance)
    assert 0 <= scores.min() < scores.max() <= 1
    assert torch.equal(scores.to(dtype).argsort(), removal_order(distance))


def test_scores_of_a_silent_matrix_still_follow_the_order():
    assert removal_scores(torch.zeros(50, 50)).argsort().tolist() == list(range(49, -1, -1))


def test_every_keep_is_nested_in_the_next():
    distance = random_distance(15, 4)
    kept = [set(keep_indices(distance, keep).tolist()) for keep in range(1, 16)]
    assert [len(each) for each in kept] == list(range(1, 16))
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))


def test_takes_a_pairwise_distance():
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    result = vector_distance(weight)
    assert torch.equal(removal_order(result), removal_order(result.matrix))


def test_one_filter_and_input_left_alone():
    assert removal_order(torch.zeros(1, 1)).tolist() == [0]
    assert keep_indices(torch.zeros(1, 1), 1).tolist() == [0]
    before = BY_HAND.clone()
    removal_order(BY_HAND)
    assert torch.equal(BY_HAND, before)


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        (torch.zeros(2, 3), r"\(2, 3\)"),
        (torch.zeros(0, 0), r"\(0, 0\)"),
        (torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "not symmetric"),
        (torch.tensor([[0.0, float("nan")], [float("nan"), 0.0]]), "NaN"),
        (torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), "negative"),
    ],
)
def test_bad_matrices_raise(distance, words):
    with pytest.raises(DecompositionError, match=words):
        removal_order(distance)


@pytest.mark.parametrize("keep", [0, 5, -1, 0.5, True])
def test_bad_keep_raises(keep):
    with pytest.raises(RecipeError, match="from 1 to 4"):
        keep_indices(BY_HAND, keep)
