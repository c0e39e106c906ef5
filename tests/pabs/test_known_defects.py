"""Two defects of the paper's public code (docs/method.md, section 2), shown here, and absent from ours."""

import math

import pytest
import torch

from norton_plugin.pabs import keep_indices, pabs_distance, removal_order


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def defective_angles(factor):
    """Arcsine of the clipped Frobenius norm of the residual, wrapped at a right angle."""
    bases = torch.linalg.qr(factor.mT)[0].mT
    angles = torch.zeros(len(factor), len(factor), dtype=torch.float64)
    for i, first in enumerate(bases):
        for j, second in enumerate(bases):
            residual = second - second @ first.T @ first
            angles[i, j] = torch.remainder(residual.norm().clamp(max=1.0).asin(), math.pi / 2)
    return angles


def near_duplicates(seed):
    """Factors of 16 rank-2 filters: 8 pairs alike to a thousandth, in random places; and who is whose twin."""
    place = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    factors = []
    for k, dim in enumerate((16, 3, 3)):
        single = draw(8, 2, dim, seed=3 * seed + k)
        pairs = torch.cat([single, single + 1e-3 * draw(8, 2, dim, seed=3 * seed + k + 1000)])
        factors.append(pairs[place])
    return factors, place % 8


@pytest.mark.parametrize("rank", [3, 4])
def test_distances_do_not_vanish_from_rank_three_on(rank):
    factors = [draw(10, rank, dim, seed=dim) for dim in (32, 3, 3)]
    defective = sum(defective_angles(factor) for factor in factors)
    assert defective.max() < 1e-6
    ours = pabs_distance(factors).matrix
    assert ours[~torch.eye(10, dtype=torch.bool)].min() > 0.5


def test_orthogonal_filters_are_far_apart_not_identical():
    eye = torch.eye(6, dtype=torch.float64)
    head = torch.stack([eye[:2], eye[2:4], eye[4:]])
    assert defective_angles(head).max() < 1e-6
    ours = pabs_distance([head]).matrix
    torch.testing.assert_close(ours[0, 1].item(), math.pi / 2, rtol=0, atol=1e-12)


def test_one_of_every_pair_of_near_duplicates_is_kept():
    ours, defective = [], []
    for seed in range(25):
        factors, twin = near_duplicates(seed)
        distance = pabs_distance(factors)
        ours.append(twin[keep_indices(distance, 8)].unique().numel())
        read_as_importance = removal_order(distance).argsort(descending=True)[:8]
        defective.append(twin[read_as_importance].unique().numel())
    assert ours == [8] * 25
    assert sum(defective) / 25 < 7.2  # chance is 6.1
