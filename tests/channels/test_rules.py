"""One table: operation, labels that go in, labels that come out, labels united, labels pinned; all written by hand.

Label 0 belongs to no channel. Maps are written without dimensions of size 1. Layers: test_layer_rules.py.
"""

import pytest
import torch
import torch.nn.functional as F
from labelled import follow, grid, pinned, pixels, plain, row

FIXED = "fixed-width-tensor"


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

SCATTER = {
    "scatter across": (
        lambda x, y, i: x.scatter(0, i, y),
        [grid([[1, 2], [1, 2]]), row(3, 4), (torch.zeros(1, 2, dtype=torch.long), None)],
        [[[[1, 2], [1, 2]]]],
        [[1, 3], [2, 4]],
        {},
    ),
    "scatter": (
        lambda x, i: x.scatter(1, i, 1.0),
        [row(1, 2), (torch.zeros(1, 1, dtype=torch.long), None)],
        [[]],
        [],
        pinned("by-position", 1, 2),
    ),
    "scatter of other rows": (
        lambda x, y, i: x.scatter(1, i, y),
        [plain(1, 3), row(1, 2), (torch.zeros(1, 2, dtype=torch.long), None)],
        [[]],
        [],
        pinned("rule-declined", 1, 2),
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
    "new_empty of its width": (lambda x: x.new_empty(2, x.shape[1]), [row(1, 2)], [[[[1, 2], [1, 2]]]], [], {}),
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
    "cummax": (lambda x: x.cummax(1)[0], [row(1, 2)], [[]], [], pinned("taken-over-channels", 1, 2)),
    "cummax across": (lambda x: x.cummax(0)[0], [grid([[1, 2], [1, 2]])], [[[[1, 2], [1, 2]]]], [], {}),
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
    "mm padded": (torch.mm, [row(1, 0), grid([[3, 3], [4, 4]])], [[]], [[1, 3]], {4: "padded-position"}),
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

FOURIER = {
    "rfft2": (
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2j, s=(4, 4)),
        [pixels(1, 2, size=4)],
        [[[[[1] * 4] * 4, [[2] * 4] * 4]]],
        [],
        {},
    ),
    "fft over channels": (lambda x: torch.fft.fft(x, dim=1).real, [row(1, 2)], [[]], [], pinned("over-channels", 1, 2)),
    "pairs": (
        lambda x: torch.view_as_complex(torch.view_as_real(torch.fft.fft(x, dim=0))),
        [row(1, 2)],
        [[[1, 2]]],
        [],
        {},
    ),
}

DISTANCES = {
    "cdist": (torch.cdist, [row(1, 2, 3), row(4, 5, 6)], [[]], [[1, 4], [2, 5], [3, 6]], {}),
    "cdist of another norm": (
        lambda x, y: torch.cdist(x, y, p=1.0),
        [row(1, 2), row(3, 4)],
        [[]],
        [[1, 3], [2, 4]],
        {},
    ),
    "cdist to constants": (torch.cdist, [row(1, 2), plain(3, 2)], [[]], [], pinned("fixed-width-matrix", 1, 2)),
}

BILINEAR = {
    "bilinear": (
        F.bilinear,
        [row(1, 2), row(3, 4, 5), grid([[[6] * 3, [7] * 3]])],
        [[]],
        [[1, 6], [2, 7]],
        pinned("fixed-width-matrix", 3, 4, 5),
    ),
    "bilinear of filters": (
        F.bilinear,
        [plain(1, 2), row(1, 2), grid([[[3, 4]] * 2] * 2)],
        [[]],
        [[1, 3], [2, 4]],
        {},
    ),
    "bilinear by a constant": (
        F.bilinear,
        [row(1, 2), row(3, 4), plain(3, 2, 2)],
        [[]],
        [],
        pinned("fixed-width-matrix", 1, 2, 3, 4),
    ),
    "bilinear makes channels": (
        F.bilinear,
        [plain(1, 2), plain(1, 3), grid([[[1] * 3] * 2, [[2] * 3] * 2])],
        [[[1, 2]]],
        [],
        {},
    ),
}

TABLE = (
    ELEMENTWISE | JOIN | SCATTER | MOVE | PART | RESHAPE | REDUCE | SPATIAL | MATRICES | FOURIER | DISTANCES | BILINEAR
)


@pytest.mark.parametrize(("function", "operands", "maps", "unions", "pins"), TABLE.values(), ids=TABLE)
def test_operation(function, operands, maps, unions, pins):
    found = follow(function, *operands)
    assert (found.maps, found.unions, found.pins) == (maps, unions, pins)
