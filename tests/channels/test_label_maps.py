"""Label maps: stored small, read along a dimension, matched across a reshape; maps that a trace gives up."""

import pytest
import torch
from torch import nn

from norton_plugin.channels import ChannelLabels, trace
from norton_plugin.channels.label_maps import (
    along,
    compact,
    consecutive,
    core,
    held_constant,
    matched_dimensions,
    spread,
    varying,
)
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.channels.tensor_axes import AxisTable


def test_maps_keep_stride_zero_where_labels_do_not_vary():
    label_map = spread(torch.tensor([3, 4, 5]), (2, 3, 7), 1)
    assert varying(label_map) == [1] and along(label_map, 1).tolist() == [3, 4, 5]
    copied = compact(label_map.clone())
    assert varying(copied) == [1] and copied.untyped_storage().nbytes() == 3 * 8
    assert torch.equal(copied, label_map)
    assert varying(compact(held_constant(label_map, [1]))) == []
    assert along(label_map, -2).tolist() == [3, 4, 5]


def test_reshapes_are_matched_dimension_by_dimension():
    assert matched_dimensions((2, 49, 96), (2, 49, 3, 4, 8)) == [([0], [0]), ([1], [1]), ([2], [2, 3, 4])]
    assert matched_dimensions((2, 14, 14, 8), (2, 2, 7, 2, 7, 8)) == [
        ([0], [0]),
        ([1], [1, 2]),
        ([2], [3, 4]),
        ([3], [5]),
    ]
    assert matched_dimensions((4, 3, 5), (12, 5)) == [([0, 1], [0]), ([2], [1])]


def test_maps_of_two_varying_dimensions():
    label_map = torch.tensor([[1, 1, 1], [2, 2, 2]]).expand(4, 2, 3)
    small = compact(label_map)
    assert varying(small) == [1] and core(small).tolist() == [[[1], [2]]]
    grid = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert varying(compact(grid)) == [0, 1] and core(grid).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert held_constant(grid, [1]).tolist() == [[1, 1, 1], [4, 4, 4]]
    assert held_constant(grid, [0]).tolist() == [[1, 2, 3], [1, 2, 3]]
    assert along(grid, 0).tolist() == [1, 4] and along(grid, 1).tolist() == [1, 2, 3]
    assert spread(consecutive(7, 3), (2, 3), 1).tolist() == [[7, 8, 9], [7, 8, 9]]


def test_an_empty_map_is_left_as_it_is():
    empty = torch.zeros(0, 4, dtype=torch.long)
    assert compact(empty) is empty


@pytest.fixture
def fresh():
    table = LabelTable()
    table.allocate(9)
    return trace.Trace(AxisTable(nn.Module(), table), table), table


def test_a_map_of_a_single_label_pins_it(fresh):
    traced, table = fresh
    x = torch.zeros(2, 3)
    rows = torch.tensor([[4, 5, 6], [4, 5, 6]])
    traced.set_labels(x, ChannelLabels((torch.full((2, 3), 2), rows), False))
    assert [m.tolist() for m in traced.labels_of(x).maps] == [[[4, 5, 6], [4, 5, 6]]]
    assert varying(traced.labels_of(x).maps[0]) == [1]
    classes = table.resolve()
    assert torch.nonzero(classes.pinned).flatten().tolist() == [2] and classes.reasons[0].code == "by-position"


def test_a_map_that_needs_too_much_memory_is_given_up(fresh, monkeypatch):
    monkeypatch.setattr(trace, "MAX_CORE", 2)
    traced, table = fresh
    x = torch.zeros(2, 3)
    traced.set_labels(x, ChannelLabels((torch.tensor([[4, 5, 6]]).expand(2, 3),), False))
    classes = table.resolve()
    assert traced.labels_of(x).maps == () and classes.reasons[0].code == "too-large"
    assert torch.nonzero(classes.pinned).flatten().tolist() == [4, 5, 6]


def test_an_unknown_tensor_is_a_constant_without_channels(fresh):
    traced, _ = fresh
    x = torch.zeros(2)
    assert traced.labels_of(x) == ChannelLabels((), True) and not traced.knows(x)
    traced.set_labels(x, ChannelLabels((), False))
    assert traced.knows(x) and not traced.labels_of(x).constant


def test_labels_of_parameters():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(2, 2))
    table = LabelTable()
    axes = AxisTable(model, table)
    assert [(a.name, a.tensor, a.dim, a.base, a.size) for a in axes.axes] == [
        ("0", "weight", 0, 1, 3),
        ("0", "weight", 1, 4, 2),
        ("0", "bias", 0, 6, 3),
        ("1", "weight", 0, 9, 2),
        ("1", "weight", 1, 11, 2),
        ("1", "bias", 0, 13, 2),
    ]
    filters, inputs = axes.labels[model[0].weight].maps
    assert filters[:, 0, 1, 2].tolist() == [1, 2, 3] and inputs[0, :, 2, 0].tolist() == [4, 5]
    assert axes.axis_of(torch.tensor([3, 4, 14])).tolist() == [0, 1, 5] and table.size == 15
