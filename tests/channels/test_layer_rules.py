"""Layers: labels that go in and come out, written by hand; roles of dimensions, and scales computed from widths.

The labels of a module's parameters are 1, 2, ... in their order, dimension by dimension; labels of inputs are larger.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from labelled import follow, pinned, pixels, plain, row
from torch import nn

from norton_plugin.channels.conditions import plain_kernels

LAYERS = {
    # weight (3, 2): filters 1-3, inputs 4-5; bias 6-8
    "Linear": (nn.Linear(2, 3), row(9, 10), [[1, 2, 3]], [[1, 6], [2, 7], [3, 8], [4, 9], [5, 10]], {}),
    "Linear on the image": (
        nn.Linear(2, 3),
        plain(1, 2),
        [[1, 2, 3]],
        [[1, 6], [2, 7], [3, 8]],
        pinned("fixed-width-matrix", 4, 5),
    ),
    "Conv2d": (nn.Conv2d(2, 3, 1), pixels(9, 10), [[1, 2, 3]], [[1, 6], [2, 7], [3, 8], [4, 9], [5, 10]], {}),
    "Conv2d on the image": (
        nn.Conv2d(2, 3, 1, bias=False),
        plain(1, 2, 1, 1),
        [[1, 2, 3]],
        [],
        pinned("fixed-width-layer", 4, 5),
    ),
    # weight (3, 1): filters 1-3, bias 4-6
    "depthwise": (nn.Conv2d(3, 3, 1, groups=3), pixels(7, 8, 9), [[1, 2, 3]], [[1, 4, 7], [2, 5, 8], [3, 6, 9]], {}),
    # weight (4, 2): filters 1-4, inputs of one group 5-6
    "grouped": (
        nn.Conv2d(4, 4, 1, groups=2, bias=False),
        pixels(7, 8, 9, 10),
        [[1, 2, 1, 2]],
        [[1, 3], [2, 4], [5, 7, 9], [6, 8, 10]],
        {},
    ),
    # weight (6, 2) of three groups of two: more groups than channels in each, so that whole groups go
    "whole groups": (
        nn.Conv2d(6, 6, 1, groups=3, bias=False),
        pixels(9, 10, 11, 12, 13, 14),
        [[1, 1, 3, 3, 5, 5]],
        [[1, 2, 9, 10], [3, 4, 11, 12], [5, 6, 13, 14]],
        pinned("whole-groups", 7, 8),
    ),
    # weight (2, 3): inputs 1-2, filters 3-5
    "transposed": (nn.ConvTranspose2d(2, 3, 1, bias=False), pixels(6, 7), [[3, 4, 5]], [[1, 6], [2, 7]], {}),
    "transposed in groups": (
        nn.ConvTranspose2d(4, 4, 1, groups=2, bias=False),
        pixels(7, 8, 9, 10),
        [[1, 1, 3, 3]],
        [[1, 2, 7, 8], [3, 4, 9, 10]],
        pinned("grouped-transposed", 5, 6),
    ),
    # weight 1-2, bias 3-4, mean 5-6, variance 7-8
    "BatchNorm2d": (nn.BatchNorm2d(2), pixels(9, 10), [[9, 10]], [[1, 3, 5, 7, 9], [2, 4, 6, 8, 10]], {}),
    "LayerNorm": (nn.LayerNorm(2), row(5, 6), [[5, 6]], [[1, 3, 5], [2, 4, 6]], {}),
    # two groups of two: the same positions of each
    "GroupNorm": (
        nn.GroupNorm(2, 4),
        pixels(9, 10, 11, 12),
        [[9, 10, 9, 10]],
        [[1, 3, 5, 7, 9, 11], [2, 4, 6, 8, 10, 12]],
        {},
    ),
    # three groups of two: whole groups
    "GroupNorm of many groups": (
        nn.GroupNorm(3, 6, affine=False),
        pixels(1, 2, 3, 4, 5, 6),
        [[1, 1, 3, 3, 5, 5]],
        [[1, 2], [3, 4], [5, 6]],
        {},
    ),
    # weight (3, 2): rows 1-3, columns 4-5
    "Embedding": (
        nn.Embedding(3, 2),
        (torch.tensor([2, 0]), None),
        [[[4, 5], [4, 5]]],
        [],
        pinned("rows-by-number", 1, 2, 3),
    ),
}


@pytest.mark.parametrize(("layer", "operand", "maps", "unions", "pins"), LAYERS.values(), ids=LAYERS)
def test_layer(layer, operand, maps, unions, pins):
    found = follow(layer.eval(), operand, module=layer)
    assert (found.maps, found.unions, found.pins) == ([maps], unions, pins)


@pytest.mark.parametrize(
    ("layer", "operand", "roles"),
    [
        (nn.Linear(2, 3), row(9, 10), ["out", "in", "both"]),
        (nn.Conv2d(2, 3, 1, bias=False), pixels(9, 10), ["out", "in"]),
        (nn.ConvTranspose2d(2, 3, 1, bias=False), pixels(9, 10), ["in", "out"]),
        (nn.Conv2d(3, 3, 1, groups=3, bias=False), pixels(7, 8, 9), ["both"]),
        (nn.Embedding(3, 2), (torch.tensor([2, 0]), None), ["both", "out"]),
    ],
)
def test_roles_of_dimensions(layer, operand, roles):
    assert [axis.role for axis in follow(layer, operand, module=layer).trace.axes.axes] == roles


def test_regions_of_a_map():
    ops = pytest.importorskip("torchvision.ops")
    boxes = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]])
    found = follow(lambda x, b: ops.roi_align(x, b, 1), pixels(1, 2, size=2), (boxes, None))
    assert found.maps == [[[1, 2]]] and found.pins == {}


def test_labels_reach_operations_one_by_one_in_inference_mode():
    def linear(x):
        with torch.inference_mode():
            return F.linear(x, weight)

    weight = torch.ones(3, 2)
    found = follow(linear, row(1, 2))
    assert found.pins == pinned("fixed-width-matrix", 1, 2) and ("mm", 0) in found.trace.notes.steps


def test_an_empty_tensor_carries_no_labels_and_its_weights_stay():
    layer = nn.Linear(2, 3, bias=False)
    found = follow(layer, plain(0, 2), module=layer)
    assert found.maps == [[]] and found.pins == pinned("nothing-to-compute", 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("function", "united", "pins"),
    [
        (lambda x, layer: layer(x[:0]), [], pinned("nothing-to-compute", 1, 2, 3, 4, 5, 6, 7)),
        (lambda x, layer: layer(torch.relu(x[:0]) * 2), [], pinned("nothing-to-compute", 1, 2, 3, 4, 5, 6, 7)),
        (lambda x, layer: x[:0].sum(0), [], pinned("nothing-to-compute", 6, 7)),
        (lambda x, layer: layer(x.index_put((torch.zeros(0, dtype=torch.long),), x[:0])), [[4, 6], [5, 7]], {}),
    ],
    ids=["read by a layer", "after steps", "not empty any more", "no part of others"],
)
def test_what_a_layer_reads_of_an_empty_tensor_stays(function, united, pins):
    layer = nn.Linear(2, 3, bias=False)
    found = follow(lambda x: function(x, layer), row(6, 7), module=layer)
    assert (found.unions, found.pins) == (united, pins)


@pytest.mark.parametrize(
    ("function", "rows", "width", "exponent"),
    [
        (lambda x: x * x.shape[1] ** -0.5, [1, 2], [1, 2], -0.5),
        (lambda x: x / x.shape[1] ** 0.5, [1, 2], [1, 2], -0.5),
        (lambda x: x * x.shape[1], [1, 2], [1, 2], 1.0),
        (lambda x: x / x.shape[1], [1, 2], [1, 2], -1.0),
        (lambda x: 2 * x[:, None] * (1 / x.shape[1]), [1, 2], [1, 2], -1.0),
        (lambda x: torch.multiply(x, x.shape[1] ** -0.5), [1, 2], [1, 2], -0.5),
        (lambda x: x * float(x.shape[1]), [1, 2], [1, 2], 1.0),
        (lambda x: x / math.sqrt(x.shape[1]), [1, 2], [1, 2], -0.5),
        (lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]), [1, 2], [1, 2], -0.5),
    ],
)
def test_a_scale_computed_from_a_width_is_compensated_in_the_rows(function, rows, width, exponent):
    layer = nn.Linear(2, 2, bias=False)
    with plain_kernels():
        found = follow(lambda x: function(layer(x)), row(5, 6), module=layer)
    [rescale] = found.trace.notes.rescales
    assert (rescale.rows.tolist(), rescale.width.tolist(), rescale.exponent) == (rows, width, exponent)
    assert found.pins == {}


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (lambda x: torch.relu(x) * x.shape[1] ** -0.5, "width-as-scale"),
        (lambda x: x + x.shape[1], "width-as-value"),
        (lambda x: x.shape[1] ** -0.5 / x, "width-as-value"),
        (lambda x: x + float(x.shape[1]), "width-as-value"),
        (lambda x: torch.relu(x) * float(x.shape[1]), "width-as-scale"),
        (lambda x: torch.full_like(x, x.shape[1]), "width-as-value"),
    ],
)
def test_any_other_use_of_a_width_as_a_value_pins_it(function, code):
    layer = nn.Linear(2, 2, bias=False)
    found = follow(lambda x: function(layer(x)), row(5, 6), module=layer)
    assert {found.pins[1], found.pins[2]} == {code} and found.trace.notes.rescales == []
