"""What a report keeps of a layer's distances."""

import base64

import pytest
import torch

from norton_plugin.pabs import excerpt, removal_scores

# Filters 0 and 3 are twins, 1 and 2 are near each other, 4 is far from all.
MATRIX = torch.tensor(
    [
        [0.0, 8.0, 8.0, 1.0, 10.0],
        [8.0, 0.0, 2.0, 8.0, 10.0],
        [8.0, 2.0, 0.0, 8.0, 10.0],
        [1.0, 8.0, 8.0, 0.0, 10.0],
        [10.0, 10.0, 10.0, 10.0, 0.0],
    ],
    dtype=torch.float64,
)
SCORES = torch.tensor([0.5, 0.9, 0.2, 0.1, 1.0])  # removed in the order 3, 2, 0, 1, 4


def pairs_of(found):
    return list(base64.b64decode(found.pairs))


def test_each_filter_stands_beside_its_nearest():
    found = excerpt(MATRIX, SCORES)
    assert found.filters == (3, 0, 2, 1, 4)
    assert (found.largest, found.average) == (10.0, pytest.approx(2 * (1 + 2 + 4 * 8 + 4 * 10) / 20))
    # 3-0, 3-2, 3-1, 3-4, 0-2, 0-1, 0-4, 2-1, 2-4, 1-4 as shares of 10 in steps of 1/255
    assert pairs_of(found) == [26, 204, 204, 255, 204, 204, 255, 51, 255, 255]
    assert found.removed == ()
    assert found.after({3, 4}).removed == (3, 4)


def test_of_many_filters_those_that_go_first_are_kept():
    found = excerpt(MATRIX, SCORES, most=3)
    assert found.filters == (3, 0, 2)
    assert pairs_of(found) == [26, 204, 204]


def test_the_size_does_not_grow_with_the_layer():
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = torch.cdist(points, points)
    matrix = (matrix + matrix.T) / 2
    matrix.fill_diagonal_(0)
    found = excerpt(matrix, removal_scores(matrix))
    assert len(found.filters) == len(set(found.filters)) == 48
    assert len(found.pairs) == 1504


@pytest.mark.parametrize("size", [1, 2, 4])
def test_filters_that_are_all_alike(size):
    found = excerpt(torch.zeros(size, size), torch.arange(size).float())
    assert sorted(found.filters) == list(range(size))
    assert (found.largest, found.average, set(pairs_of(found)) - {0}) == (0.0, 0.0, set())
