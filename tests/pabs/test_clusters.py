"""Clusters of filters by the angles between their heads, against planted clusters and scipy."""

import subprocess
import sys

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from norton_plugin.errors import DecompositionError
from norton_plugin.pabs import cluster_filters, largest_angle_matrix


def planted(sizes: list[int], *, noise: float = 0.02, rank: int = 2, dim: int = 12, seed: int = 0) -> Tensor:
    """Heads near as many subspaces as there are sizes, with random bases, scales and signs."""
    generator = torch.Generator().manual_seed(seed)
    heads = []
    for size in sizes:
        base = torch.randn(rank, dim, generator=generator, dtype=torch.float64)
        mixes = torch.linalg.qr(torch.randn(size, rank, rank, generator=generator, dtype=torch.float64))[0]
        scales = torch.rand(size, 1, 1, generator=generator, dtype=torch.float64) + 0.5
        heads.append(
            scales * mixes @ base + noise * torch.randn(size, rank, dim, generator=generator, dtype=torch.float64)
        )
    return torch.cat(heads)


def same_partition(a: Tensor, b: Tensor) -> bool:
    return bool(torch.equal(a.unsqueeze(1) == a, b.unsqueeze(1) == b))


def test_planted_clusters_are_found_in_any_order() -> None:
    heads = planted([6, 6, 6, 6])
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    truth = torch.arange(4).repeat_interleave(6)
    assert same_partition(cluster_filters(heads[shuffle], 4), truth[shuffle])


def test_equals_a_cut_of_scipy_where_its_clusters_are_equal() -> None:
    heads = planted([5, 5, 5], noise=0.2, seed=1)
    tree = linkage(squareform(largest_angle_matrix(heads).numpy(), checks=False), method="average")
    expected = torch.from_numpy(fcluster(tree, 3, criterion="maxclust"))
    assert expected.bincount()[1:].tolist() == [5, 5, 5]
    assert same_partition(cluster_filters(heads, 3), expected)


@pytest.mark.parametrize(("filters", "clusters"), [(24, 5), (24, 7), (13, 4), (9, 8), (8, 2), (7, 7), (7, 1)])
def test_sizes_differ_by_at_most_one(filters: int, clusters: int) -> None:
    generator = torch.Generator().manual_seed(0)
    found = cluster_filters(torch.randn(filters, 2, 6, generator=generator), clusters)
    sizes = found.bincount(minlength=clusters)
    assert found.dtype == torch.int64 and len(sizes) == clusters
    assert sizes.max() - sizes.min() <= 1 and sizes.min() >= 1


def test_clusters_stay_within_groups_and_ascend_with_them() -> None:
    heads = torch.cat([planted([4, 4], seed=1), planted([4, 4], seed=2), planted([4, 4], seed=3)])
    found = cluster_filters(heads, 6, groups=3)
    for group in range(3):
        part = found[group * 8 : (group + 1) * 8]
        assert sorted(set(part.tolist())) == [2 * group, 2 * group + 1]
        assert same_partition(part, torch.arange(2).repeat_interleave(4))


def test_clusters_lower_the_angles_within() -> None:
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(64, 2, 5, generator=generator)
    angles = largest_angle_matrix(heads)

    def mean_within(cluster: Tensor) -> float:
        return float(angles[cluster.unsqueeze(1) == cluster].mean())

    shuffled = torch.arange(64)[torch.randperm(64, generator=generator)] % 8
    assert mean_within(cluster_filters(heads, 8)) < 0.9 * mean_within(shuffled)


def test_the_same_heads_give_the_same_clusters() -> None:
    heads = torch.randn(40, 2, 8, generator=torch.Generator().manual_seed(0))
    first = cluster_filters(heads, 5)
    assert torch.equal(first, cluster_filters(heads, 5))
    assert torch.equal(first, cluster_filters(heads * 7, 5))  # spans ignore the scale


def test_trivial_numbers_need_no_information() -> None:
    full = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0))
    assert cluster_filters(full, 1).tolist() == [0] * 6
    assert cluster_filters(full, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert cluster_filters(full, 2, groups=2).tolist() == [0, 0, 0, 1, 1, 1]


def test_heads_that_span_everything_are_refused() -> None:
    full = torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DecompositionError, match="span the whole space"):
        cluster_filters(full, 3)


@pytest.mark.parametrize(("clusters", "groups"), [(0, 1), (13, 1), (3, 2), (2, 4), (6, 5), (4, 0)])
def test_numbers_that_do_not_fit_are_refused(clusters: int, groups: int) -> None:
    with pytest.raises(DecompositionError, match=f"{clusters} clusters in {groups} group"):
        cluster_filters(torch.randn(12, 2, 6), clusters, groups=groups)


def test_heads_that_are_not_finite_are_refused() -> None:
    heads = torch.randn(12, 2, 6)
    heads[3, 0, 0] = torch.nan
    with pytest.raises(DecompositionError, match="NaN or infinite"):
        cluster_filters(heads, 3)


def test_scipy_is_imported_only_when_used() -> None:
    code = "import sys, norton_plugin.pabs, norton_plugin.cpd; sys.exit('scipy.cluster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
