"""Places of filters in clusters: literal cases, and a definition by loops as the oracle."""

import itertools

import pytest
import torch

from norton_plugin.blocks.clusters import clusters_to_keep, even_clusters, slots_of, wrong_slots


def test_filters_take_the_places_of_their_cluster_in_order():
    slot, size = slots_of(torch.tensor([2, 0, 0, 2, 2, 0]), 4)
    assert slot.tolist() == [6, 0, 1, 7, 8, 2] and size == 3
    slot, size = slots_of(torch.tensor([2, 0, 0, 2, 2, 0]), 4, size=5)
    assert slot.tolist() == [10, 0, 1, 11, 12, 2] and size == 5


def test_every_assignment_of_five_filters_comes_back_from_its_places():
    for each in itertools.product(range(3), repeat=5):
        cluster = torch.tensor(each)
        slot, size = slots_of(cluster, 3)
        assert (slot // size).tolist() == list(each) and len(set(slot.tolist())) == 5
        assert size == max(each.count(k) for k in range(3))
        assert wrong_slots(slot, filters=5, clusters=3, size=size, groups=1) == ""


@pytest.mark.parametrize(("filters", "clusters"), [(9, 3), (10, 3), (7, 7), (5, 1), (64, 6)])
def test_even_clusters_are_neighbours_of_nearly_equal_numbers(filters, clusters):
    found = even_clusters(filters, clusters)
    counts = found.bincount(minlength=clusters)
    assert found.tolist() == sorted(found.tolist()) and int(counts.max() - counts.min()) <= 1
    assert slots_of(found, clusters)[1] == -(-filters // clusters)


@pytest.mark.parametrize(
    ("cluster", "clusters", "groups", "kept"),
    [
        ([0, 0, 2], 3, 1, [0, 2]),
        ([1, 1, 1], 3, 1, [1]),
        ([0, 1, 2], 3, 1, [0, 1, 2]),
        ([0, 0, 2, 3], 4, 2, [0, 1, 2, 3]),  # the second group needs two, so the first keeps an empty one
        ([0, 0, 3, 3], 4, 2, [0, 3]),
        ([1, 1, 5, 4], 6, 2, [0, 1, 4, 5]),
        ([2, 3], 4, 2, [2, 3]),  # the first group went whole
        ([5, 5], 6, 3, [5]),
    ],
)
def test_clusters_that_no_filter_needs_go(cluster, clusters, groups, kept):
    assert clusters_to_keep(torch.tensor(cluster), clusters, groups) == kept


def test_groups_keep_equal_numbers_and_all_that_is_used():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        groups, each = (int(torch.randint(1, 4, (), generator=generator)) for _ in range(2))
        filters = int(torch.randint(1, 5, (), generator=generator))
        within = torch.randint(0, each, (groups, filters), generator=generator)
        cluster = (within + each * torch.arange(groups)[:, None]).flatten()
        kept = clusters_to_keep(cluster, groups * each, groups)
        counts = [sum(k // each == g for k in kept) for g in range(groups)]
        assert set(cluster.tolist()) <= set(kept) and kept == sorted(set(kept)) and len(set(counts)) == 1
        assert counts[0] == max(len(set(row.tolist())) for row in within)


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        (torch.tensor([0, 1, 2, 3]), ""),
        (torch.tensor([1, 0, 3, 2]), ""),
        (torch.tensor([0, 1, 2, 4]), "a place of its own from 0 to 3"),
        (torch.tensor([0, 0, 2, 3]), "a place of its own"),
        (torch.tensor([2, 1, 0, 3]), "clusters of another of the 2 channel groups"),
        (torch.tensor([0, 1, 2]), "expected torch.int64 of shape (4,)"),
        (torch.tensor([0.0, 1.0, 2.0, 3.0]), "is torch.float32"),
    ],
)
def test_wrong_places_are_told(slot, words):
    found = wrong_slots(slot, filters=4, clusters=2, size=2, groups=2)
    assert words in found and bool(words) == bool(found)
