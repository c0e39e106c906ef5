"""From classes of labels to groups: which channels are shown together, how they are numbered, and whose they are."""

import torch
from torch import nn

from norton_plugin.channels.grouping import labelled_groups, produces
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.channels.tensor_axes import AxisTable
from norton_plugin.reasons import Reason


def grouped(model, *, unions=(), pins=(), inputs=()):
    """Groups of a model whose first dimensions are outputs; ``inputs`` are (module name, dim) that are read."""
    table = LabelTable()
    axes = AxisTable(model, table)
    for axis in axes.axes:
        if axis.tensor == "weight":
            axis.role = "in" if (axis.name, axis.dim) in inputs else "out" if axis.dim == 0 else "in"
    for a, b in unions:
        table.unite(torch.tensor(a), torch.tensor(b))
    for labels, reason in pins:
        table.pin(torch.tensor(labels), reason)
    return axes, labelled_groups(axes, table.resolve())


def members(group):
    return [(m.name, m.role, m.indices, m.roots) for m in group.members]


def test_two_layers_in_a_row():
    # 0.weight (4, 2): 1-4 | 5-6; 1.weight (3, 4): 7-9 | 10-13
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 3, bias=False))
    output = Reason.MODEL_OUTPUT.because()
    _, entries = grouped(model, unions=[([1, 2, 3, 4], [10, 11, 12, 13])], pins=[([7, 8, 9], output)])
    first, second = (entry.group for entry in entries)
    assert (first.root, first.size, first.channel_groups, first.blocked) == ("0", 4, 1, None)
    assert members(first) == [("0", "out", (0, 1, 2, 3), (0, 1, 2, 3)), ("1", "in", (0, 1, 2, 3), (0, 1, 2, 3))]
    assert [m.name for m in first.producers] == ["0"] and [m.name for m in first.consumers] == ["1"]
    assert entries[0].classes.tolist() == [1, 2, 3, 4]
    assert (second.root, second.size, second.blocked) == ("1", 3, output)


def test_channels_that_are_read_in_another_order():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    # 0.weight (3, 2): 1-3 | 4-5; 1.weight (2, 3): 6-7 | 8-10; position 0 of the second reads channel 2 of the first
    _, entries = grouped(model, unions=[([1, 2, 3], [9, 10, 8])])
    assert members(entries[0].group)[1] == ("1", "in", (0, 1, 2), (2, 0, 1))


def test_channels_with_other_readers_are_another_group():
    # 0: 1-4 | 5-6; 1 reads the first two: (2, 2): 7-8 | 9-10; 2 the others: (2, 2): 11-12 | 13-14
    model = nn.Sequential(*(nn.Linear(2, n, bias=False) for n in (4, 2, 2)))
    _, entries = grouped(model, unions=[([1, 2], [9, 10]), ([3, 4], [13, 14])])
    first, second = (entry.group for entry in entries[:2])
    assert (first.root, first.size, second.root, second.size) == ("0", 2, "0#2", 2)
    assert members(second) == [("0", "out", (2, 3), (0, 1)), ("2", "in", (0, 1), (0, 1))]


def test_a_pin_splits_a_group():
    model = nn.Sequential(nn.Linear(2, 4, bias=False))
    cause = Reason.BY_NUMBER.because()
    _, entries = grouped(model, pins=[([2, 4], cause)])
    assert [(e.group.root, e.group.blocked, e.classes.tolist()) for e in entries] == [
        ("0", None, [1, 3]),
        ("0#2", cause, [2, 4]),
    ]


def test_equal_parts_are_numbered_part_by_part():
    # (6, 2): channels 1-3 and 4-6 are heads that lose the same channels
    model = nn.Sequential(nn.Linear(2, 6, bias=False))
    _, [entry] = grouped(model, unions=[([1, 2, 3], [4, 5, 6])])
    assert (entry.group.size, entry.group.channel_groups, entry.classes.tolist()) == (6, 2, [1, 2, 3])
    assert members(entry.group) == [("0", "out", (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5))]


def test_a_bias_and_a_norm():
    # 0.weight (2, 1): 1-2, bias 3-4; 1 (norm): weight 5-6, bias 7-8, mean 9-10, variance 11-12
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    axes, [entry] = grouped(model, unions=[([1, 2], labels) for labels in ([3, 4], [5, 6], [7, 8], [9, 10], [11, 12])])
    assert [(m.name, m.role) for m in entry.group.members] == [("0", "out"), ("1", "out")]
    assert [produces(axis) for axis in axes.axes] == [True, False, False, False, False, False]
    assert [m.name for m in entry.group.producers] == ["0"]
    axes.axes[0].role = "both"  # as of a depthwise convolution, which passes channels on
    assert not produces(axes.axes[0])


def test_a_bare_parameter_is_a_member_of_its_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1, bias=False)
            self.gamma = nn.Parameter(torch.ones(2))

    model = Scaled()  # gamma 1-2, conv.weight 3-4
    _, [entry] = grouped(model, unions=[([1, 2], [3, 4])])
    assert [(m.name, m.role) for m in entry.group.members] == [("conv", "out"), ("gamma", "both")]
    assert entry.group.members[1].module is model.gamma


def test_channels_are_numbered_as_the_filters_of_the_root_whatever_their_labels():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(2, 3, bias=False))
    # weight 1-3, bias 4-6; 1.weight (3, 2): 7-9 | 10-11; filter 0 belongs to channel 2 of the norm
    _, entries = grouped(model, unions=[([1, 2, 3], [8, 9, 7]), ([1, 2, 3], [4, 5, 6])])
    assert entries[0].classes.tolist() == [3, 1, 2] and entries[0].group.root == "1"
    assert members(entries[0].group) == [("1", "out", (0, 1, 2), (0, 1, 2)), ("0", "out", (0, 1, 2), (1, 2, 0))]


def test_a_model_without_parameters_has_no_groups():
    assert grouped(nn.ReLU())[1] == []
