"""One table: operation, labels that go in, labels that come out, labels united, labels pinned; all written by hand.

Labels 0 belong to no channel. Maps are written without dimensions of size 1; the labels of a module's parameters are
1, 2, ... in their order (dimension by dimension), so that labels of inputs are larger there.
"""

import pytest
import torch
import torch.nn.functional as F
from labelled import follow
from torch import nn

from norton_plugin.channels.conditions import plain_kernels

FIXED = "fixed-width-tensor"


def row(*labels):
    """A (1, n) tensor with these labels along dimension 1."""
    return torch.ones(1, len(labels)), torch.tensor([labels])


def grid(labels):
    """A tensor with one label per element."""
    label_map = torch.tensor(labels)
    return torch.ones(label_map.shape), label_map


def pixels(*labels, size=1):
    """A (1, n, size, size) map with these labels along dimension 1."""
    x = torch.arange(1.0, 1 + len(labels) * size * size).view(1, len(labels), size, size)
    return x, torch.tensor(labels).view(1, -1, 1, 1).expand(x.shape)


def plain(*shape):
    """A tensor without channels."""
    return torch.ones(shape), None


def pinned(code, *labels):
    return dict.fromkeys(labels, code)


ELEMENTWISE = {
    "relu": (torch.relu, [row(1, 2, 3)], [[[1, 2, 3]]], [], {}),
    "add": (torch.add, [row(1, 2, 3), row(4, 5, 6)], [[[1, 2, 3]]], [[1, 4], [2, 5], [3, 6]], {}),
    "mul broadcast": (torch.mul, [row(1, 2, 3), plain(1, 1)], [[[1, 2, 3]]], [], {}),
    "mul fixed": (torch.mul, [row(1, 2, 3), plain(3)], [[]], [], pinned(FIXED, 1, 2, 3)),
    "sub padded": (torch.sub, [row(1, 0, 2), row(3, 4, 5)], [[[1, 4, 2]]], [[1, 3], [2, 5]], {4: "padded-position"}),
    "maximum": (torch.maximum, [row(1, 2), row(2, 1)], [[[1, 2]]], [[1, 2]], {}),
    "where": (
        lambda a, b: torch.where(a > 0, a, b),
        [row(1, 2), row(3, 4)],
        [[[1, 2]]],
        [[1, 3], [2, 4]],
        {},
    ),
    "token mixing": (
        torch.mul,
        [grid([[1, 1], [2, 2]]), grid([[3, 4], [3, 4]])],
        [[]],
        [],
        pinned("positions-or-heads", 1, 2, 3, 4),
    ),
    "glu": (lambda x: F.glu(x, 1), [row(1, 2, 3, 4)], [[[1, 2]]], [[1, 3], [2, 4]], {}),
    "expanded operand": (lambda x, y: x + y.expand(1, 3), [row(1, 2, 3), plain(1, 1)], [[[1, 2, 3]]], [], {}),
}

JOIN = {
    "cat": (lambda *x: torch.cat(x, 1), [row(1, 2), row(3, 4, 5)], [[[1, 2, 3, 4, 5]]], [], {}),
    "cat with a constant": (lambda *x: torch.cat(x, 1), [row(1, 2), plain(1, 1)], [[[1, 2, 0]]], [], {}),
    "cat across": (lambda *x: torch.cat(x, 0), [row(1, 2), row(3, 4)], [[[[1, 2], [1, 2]]]], [[1, 3], [2, 4]], {}),
    "stack": (lambda *x: torch.stack(x, 1), [row(1, 2), row(3, 4)], [[[[1, 2], [1, 2]]]], [[1, 3], [2, 4]], {}),
    "repeat": (lambda x: x.repeat(2, 2), [row(1, 2)], [[[[1, 2, 1, 2], [1, 2, 1, 2]]]], [], {}),
    "copy": (lambda x, y: x.clone().copy_(y), [row(1, 2), row(3, 4)], [[[1, 2]]], [[1, 3], [2, 4]], {}),
    "copy into a buffer": (lambda x, y: x.copy_(y), [plain(1, 2), row(1, 2)], [[]], [], pinned(FIXED, 1, 2)),
    "index_put of rows": (
        lambda x, i: torch.zeros(2, x.shape[1]).index_put_((i,), x),
        [row(1, 2), (torch.tensor([1]), None)],
        [[[[1, 2], [1, 2]]]],
        [],
        {},
    ),
}

MOVE = {
    "transpose": (lambda x: x.T, [grid([[1, 2], [1, 2]])], [[[[1, 1], [2, 2]]]], [], {}),
    "permute": (lambda x: x.permute(1, 2, 0), [grid([[[1, 2]], [[1, 2]]])], [[[[1, 1], [2, 2]]]], [], {}),
    "clone": (torch.clone, [row(1, 2)], [[[1, 2]]], [], {}),
    "flip": (lambda x: x.flip(1), [row(1, 2, 3)], [[[3, 2, 1]]], [], {}),
    "roll": (lambda x: x.roll(1, 1), [row(1, 2, 3)], [[]], [], pinned("over-channels", 1, 2, 3)),
    "roll across": (lambda x: x.roll(1, 0), [grid([[1, 2], [1, 2]])], [[[[1, 2], [1, 2]]]], [], {}),
    "pad channels": (lambda x: F.pad(x, (1, 2)), [row(1, 2)], [[[0, 1, 2, 0, 0]]], [], {}),
    "pad across": (lambda x: F.pad(x, (0, 0, 1, 0)), [row(1, 2)], [[[[1, 2], [1, 2]]]], [], {}),
    "expand": (lambda x: x.expand(2, 2), [row(1, 2)], [[[[1, 2], [1, 2]]]], [], {}),
    "zeros_like": (torch.zeros_like, [row(1, 2)], [[[1, 2]]], [], {}),
    "zeros of its width": (lambda x: torch.zeros(2, x.shape[1]), [row(1, 2)], [[[[1, 2], [1, 2]]]], [], {}),
    "new_ones of its width": (lambda x: x.new_ones(x.shape[1]), [row(1, 2)], [[[1, 2]]], [], {}),
    "as_strided": (lambda x: x.as_strided((2,), (1,)), [row(1, 2)], [[]], [], pinned("rule-declined", 1, 2)),
}

PART = {
    "split": (lambda x: x.split(2, 1), [row(1, 2, 3, 4)], [[[1, 2]], [[1, 2]]], [[1, 3], [2, 4]], {}),
    "split_with_sizes": (lambda x: x.split([2, 3], 1), [row(1, 2, 3, 4, 5)], [[[1, 2]], [[3, 4, 5]]], [], {}),
    "split across": (lambda x: x.split(1, 0), [grid([[1, 2], [1, 2]])], [[[1, 2]], [[1, 2]]], [], {}),
    "half": (lambda x: x[:, 2:], [row(1, 2, 3, 4)], [[[1, 2]]], [[1, 3], [2, 4]], {}),
    "slice": (lambda x: x[:, 1:3], [row(1, 2, 3, 4)], [[[2, 3]]], [], {}),
    "every second": (lambda x: x[:, ::2], [row(1, 2, 3, 4)], [[[1, 3]]], [[1, 2], [3, 4]], {}),
    "every second of five": (
        lambda x: x[:, ::2],
        [row(1, 2, 3, 4, 5)],
        [[[1, 3, 5]]],
        [],
        pinned("by-position", 1, 2, 3, 4, 5),
    ),
    "select": (lambda x: x[:, 1], [row(1, 2)], [[]], [], pinned("by-position", 1, 2)),
    "select across": (lambda x: x[1], [grid([[1, 2], [1, 2]])], [[[1, 2]]], [], {}),
    "unbind across": (lambda x: x.unbind(0), [grid([[1, 2], [1, 2]])], [[[1, 2]], [[1, 2]]], [], {}),
    "index": (lambda x: x[:, [1, 0]], [row(1, 2, 3)], [[]], [], pinned("by-position", 1, 2, 3)),
    "index across": (lambda x: x[[0, 0, 0]], [row(1, 2)], [[[[1, 2]] * 3]], [], {}),
    "index_select": (
        lambda x, i: x.index_select(1, i),
        [row(1, 2), (torch.tensor([0]), None)],
        [[]],
        [],
        pinned("by-position", 1, 2),
    ),
    "gather across": (
        lambda x, i: x.gather(0, i),
        [row(1, 2), (torch.zeros(3, 2, dtype=torch.long), None)],
        [[[[1, 2]] * 3]],
        [],
        {},
    ),
    "gather": (
        lambda x, i: x.gather(1, i),
        [row(1, 2), (torch.zeros(1, 2, dtype=torch.long), None)],
        [[]],
        [],
        pinned("by-position", 1, 2),
    ),
    "unfold": (lambda x: x.unfold(1, 2, 1), [row(1, 2, 3)], [[]], [], pinned("over-channels", 1, 2, 3)),
}

RESHAPE = {
    "heads": (
        lambda x: x.view(1, 2, 3),
        [row(1, 2, 3, 4, 5, 6)],
        [[[[1, 2, 3], [1, 2, 3]]]],
        [[1, 4], [2, 5], [3, 6]],
        {},
    ),
    "zoom factor": (
        lambda x: x.view(1, 3, 2),
        [row(1, 2, 3, 4, 5, 6)],
        [[[[1, 1], [3, 3], [5, 5]]]],
        [[1, 2], [3, 4], [5, 6]],
        {},
    ),
    "flatten": (lambda x: x.flatten(1), [pixels(1, 2, size=2)], [[[1, 1, 1, 1, 2, 2, 2, 2]]], [], {}),
    "unflatten": (lambda x: x.unflatten(1, (2, 1)), [row(1, 2)], [[[1, 2]]], [], {}),
    "merge with positions": (lambda x: x.reshape(4), [grid([[1, 2], [1, 2]])], [[[1, 2, 1, 2]]], [], {}),
}

REDUCE = {
    "mean": (lambda x: x.mean(1), [grid([[1, 2], [1, 2]])], [[]], [], {}),
    "mean across": (lambda x: x.mean(0), [grid([[1, 2], [1, 2]])], [[[1, 2]]], [], {}),
    "sum keeping dimensions": (lambda x: x.sum(0, keepdim=True), [grid([[1, 2], [1, 2]])], [[[1, 2]]], [], {}),
    "var": (lambda x: x.var(1), [row(1, 2)], [[]], [], {}),
    "norm across": (lambda x: torch.linalg.vector_norm(x, dim=0), [grid([[1, 2], [1, 2]])], [[[1, 2]]], [], {}),
    "amax": (lambda x: x.amax(1), [row(1, 2)], [[]], [], pinned("taken-over-channels", 1, 2)),
    "largest channel of a map": (lambda x: x.amax(1, keepdim=True), [pixels(1, 2, size=2)], [[]], [], {}),
    "number of the largest channel": (
        lambda x: x.max(1)[1] + 1,
        [pixels(1, 2, size=2)],
        [[]],
        [],
        pinned("by-number", 1, 2),
    ),
    "max of two": (torch.max, [row(1, 2), row(3, 4)], [[[1, 2]]], [[1, 3], [2, 4]], {}),
    "argmax": (lambda x: x.argmax(1), [row(1, 2)], [[]], [], pinned("taken-over-channels", 1, 2)),
    "softmax": (lambda x: x.softmax(1), [row(1, 2)], [[]], [], pinned("taken-over-channels", 1, 2)),
    "softmax across": (lambda x: x.softmax(0), [grid([[1, 2], [1, 2]])], [[[[1, 2], [1, 2]]]], [], {}),
    "cumsum": (lambda x: x.cumsum(1), [row(1, 2)], [[]], [], pinned("taken-over-channels", 1, 2)),
    "cumsum across": (lambda x: x.cumsum(0), [grid([[1, 2], [1, 2]])], [[[[1, 2], [1, 2]]]], [], {}),
    "sort across": (lambda x: x.sort(0), [grid([[1, 2], [1, 2]])], [[[[1, 2], [1, 2]]], [[[1, 2], [1, 2]]]], [], {}),
    "topk": (lambda x: x.topk(1, 1), [row(1, 2)], [[], []], [], pinned("no-rule", 1, 2)),
}

SPATIAL = {
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), [pixels(1, 2, size=2)], [[[1, 2]]], [], {}),
    "interpolate": (
        lambda x: F.interpolate(x, scale_factor=2),
        [pixels(1, 2)],
        [[[[[1, 1], [1, 1]], [[2, 2], [2, 2]]]]],
        [],
        {},
    ),
    "avg_pool1d over channels": (
        lambda x: F.avg_pool1d(x[None], 2),
        [row(1, 2)],
        [[]],
        [],
        pinned("over-channels", 1, 2),
    ),
    "im2col": (lambda x: F.unfold(x, 2), [pixels(1, 2, size=2)], [[[1, 1, 1, 1, 2, 2, 2, 2]]], [], {}),
    "col2im": (
        lambda x: F.fold(x[..., None], 2, 2),
        [row(1, 2, 3, 4, 5, 6, 7, 8)],
        [[[[[1, 1], [1, 1]], [[5, 5], [5, 5]]]]],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        {},
    ),
    "pixel_shuffle": (
        lambda x: F.pixel_shuffle(x, 2),
        [pixels(1, 2, 3, 4, 5, 6, 7, 8)],
        [[[[[1, 1], [1, 1]], [[5, 5], [5, 5]]]]],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        {},
    ),
    "pixel_unshuffle": (
        lambda x: F.pixel_unshuffle(x, 2),
        [pixels(1, 2, size=2)],
        [[[1, 1, 1, 1, 2, 2, 2, 2]]],
        [],
        {},
    ),
}

MATRICES = {
    "mm by a constant": (torch.mm, [row(1, 2), plain(2, 3)], [[]], [], pinned("fixed-width-matrix", 1, 2)),
    "mm": (torch.mm, [row(1, 2), grid([[3, 3], [4, 4]])], [[]], [[1, 3], [2, 4]], {}),
    "outer product": (torch.mm, [plain(1, 1), row(1, 2)], [[[1, 2]]], [], {}),
    "bmm": (
        torch.bmm,
        [grid([[[1, 2], [1, 2]]]), grid([[[3, 3], [4, 4]]])],
        [[]],
        [[1, 3], [2, 4]],
        {},
    ),
    "baddbmm": (
        torch.baddbmm,
        [plain(1, 1, 1), grid([[[1, 2]]]), grid([[[3], [4]]])],
        [[]],
        [[1, 3], [2, 4]],
        {},
    ),
    "values by scores": (torch.bmm, [plain(1, 2, 3), grid([[[1, 2]] * 3])], [[[[1, 2], [1, 2]]]], [], {}),
}

TABLE = ELEMENTWISE | JOIN | MOVE | PART | RESHAPE | REDUCE | SPATIAL | MATRICES


@pytest.mark.parametrize(("function", "operands", "maps", "unions", "pins"), TABLE.values(), ids=TABLE)
def test_operation(function, operands, maps, unions, pins):
    found = follow(function, *operands)
    assert (found.maps, found.unions, found.pins) == (maps, unions, pins)


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
    ("function", "rows", "width", "exponent"),
    [
        (lambda x: x * x.shape[1] ** -0.5, [1, 2], [1, 2], -0.5),
        (lambda x: x / x.shape[1] ** 0.5, [1, 2], [1, 2], -0.5),
        (lambda x: x * x.shape[1], [1, 2], [1, 2], 1.0),
        (lambda x: x / x.shape[1], [1, 2], [1, 2], -1.0),
        (lambda x: 2 * x[:, None] * (1 / x.shape[1]), [1, 2], [1, 2], -1.0),
        (lambda x: torch.multiply(x, x.shape[1] ** -0.5), [1, 2], [1, 2], -0.5),
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
        (lambda x: x * float(x.shape[1]), "width-as-value"),
        (lambda x: torch.full_like(x, x.shape[1]), "width-as-value"),
    ],
)
def test_any_other_use_of_a_width_as_a_value_pins_it(function, code):
    layer = nn.Linear(2, 2, bias=False)
    found = follow(lambda x: function(layer(x)), row(5, 6), module=layer)
    assert {found.pins[1], found.pins[2]} == {code} and found.trace.notes.rescales == []
