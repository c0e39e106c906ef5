"""Operations that sum over a dimension: convolutions and products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.channels.label_maps import Shadow, along, compact, core, held_constant, spread, varying
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.rules.elementwise import combine
from norton_plugin.channels.tracer import Tracer
from norton_plugin.reasons import Reason


def contract(
    tracer: Tracer, a: Shadow, b: Shadow, shapes: tuple[Sequence[int], Sequence[int]]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Planes of a product of (B, N, K) by (B, K, M), and those of the first operand that are summed over.

    A channel along K is the same in both operands; one along N, M or B lives on in the result.
    """
    (batch, n, k), m = shapes[0], shapes[1][2]
    summed_a, free_a = _sort(tracer, a.planes, 2, 1)
    summed_b, free_b = _sort(tracer, b.planes, 1, 2)
    for p in summed_a:
        for q in summed_b:
            pair_labels(tracer, p[:, 0, :], q[:, :, 0])
    if k > 1:
        for one, other in ((summed_a, summed_b), (summed_b, summed_a)):
            if one and not other:
                for plane in one:
                    tracer.pin(plane, Reason.FIXED_WIDTH_MATRIX.because())
    # A layer is one even where it computes from constants, as from a table of positions.
    layer = bool(tracer.stack) and isinstance(tracer.stack[-1], nn.Linear)
    for operand, partner, summed, free in ((a, b, summed_a, free_a), (b, a, summed_b, free_b)):
        if operand.constant and (not partner.constant or (layer and operand is b)):
            tracer.set_role(summed, "in")
            tracer.set_role(free, "out")
    left = Shadow(tuple(p.narrow(2, 0, 1) for p in free_a), a.constant)
    right = Shadow(tuple(p.narrow(1, 0, 1) for p in free_b), b.constant)
    planes = combine(tracer, [(left, (batch, n, 1)), (right, (batch, 1, m))], (batch, n, m))
    return planes, summed_a


def pair_labels(tracer: Tracer, p: Tensor, q: Tensor) -> None:
    """Unites two lists of summed-over channels; one that meets no channel has to stay."""
    tracer.unite(p, q)
    small_p, small_q = torch.broadcast_tensors(core(p), core(q))
    for labels, partner in ((small_p, small_q), (small_q, small_p)):
        alone = (labels != 0) & (partner == 0)
        if bool(alone.any()):
            tracer.table.pin(labels[alone], Reason.PADDED_POSITION.because())


def _sort(tracer: Tracer, planes: Sequence[Tensor], summed: int, free: int) -> tuple[list[Tensor], list[Tensor]]:
    consumed, kept = [], []
    for plane in planes:
        live = varying(plane)
        if summed not in live:
            kept.append(plane)
            continue
        if free in live:
            flat = held_constant(plane, [free])
            tracer.unite(plane, flat)
            plane = compact(flat)
        consumed.append(plane)
    return consumed, kept


def _lifted(shadow: Shadow) -> Shadow:
    return Shadow(tuple(plane[None] for plane in shadow.planes), shadow.constant)


@rule("mm")
def mm(tracer: Tracer, call: Call) -> Shadow:
    """(N, K) by (K, M)."""
    return _matrix_product(tracer, call, 0, None)


@rule("addmm")
def addmm(tracer: Tracer, call: Call) -> Shadow:
    """The same, and a bias."""
    return _matrix_product(tracer, call, 1, call.args[0])


def _matrix_product(tracer: Tracer, call: Call, first: int, bias: Tensor | None) -> Shadow:
    a, b = call.args[first], call.args[first + 1]
    shapes = ((1, *a.shape), (1, *b.shape))
    planes, summed = contract(tracer, _lifted(tracer.shadow(a)), _lifted(tracer.shadow(b)), shapes)
    tracer.step("zero", [plane[0] for plane in summed])
    out = tuple(plane[0] for plane in planes)
    makers = [plane for plane in tracer.shadow(b).planes if varying(plane) == [1]]
    rows = makers[0][:1].expand(call.out.shape) if tracer.shadow(b).constant and len(makers) == 1 else None
    if bias is not None:
        shape = tuple(call.out.shape)
        out = combine(tracer, [(Shadow(out), shape), (tracer.shadow(bias), tuple(bias.shape))], shape)
    return Shadow(out, rows=rows)


@rule("bmm")
def bmm(tracer: Tracer, call: Call) -> Shadow:
    """(B, N, K) by (B, K, M)."""
    a, b = call.args
    planes, summed = contract(tracer, tracer.shadow(a), tracer.shadow(b), (a.shape, b.shape))
    tracer.step("zero", summed)
    return Shadow(planes, scores=bool(summed))


@rule("baddbmm")
def baddbmm(tracer: Tracer, call: Call) -> Shadow:
    """The same, and a term that is added."""
    term, a, b = call.args[:3]
    planes, summed = contract(tracer, tracer.shadow(a), tracer.shadow(b), (a.shape, b.shape))
    tracer.step("zero", summed)
    shape = tuple(call.out.shape)
    product = Shadow(planes, scores=bool(summed))
    return Shadow(
        combine(tracer, [(product, shape), (tracer.shadow(term), tuple(term.shape))], shape), scores=bool(summed)
    )


@rule("convolution", "_convolution", "conv2d", "mkldnn_convolution", "cudnn_convolution")
def convolution(tracer: Tracer, call: Call) -> Shadow:
    """Input channels are consumed, filters make new ones; grouped ones lose the same of each group, or whole groups."""
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    if x.dim() == 3 and x.shape == call.out.shape and x.shape[1] == 1:
        return _along_channels(tracer, x)
    inputs, carried = [], []
    for plane in tracer.shadow(x).planes:
        if varying(plane) == [1]:
            inputs.append(along(plane, 1))
        elif all(_untouched(call, d) for d in varying(plane)):
            carried.append(core(plane))
        else:
            tracer.pin(plane, Reason.OVER_CHANNELS.because(operation="a convolution"))
    row_dim, column_dim = (1, 0) if transposed else (0, 1)
    rows, columns = [], []
    for plane in tracer.shadow(weight).planes:
        live = varying(plane)
        if live == [row_dim]:
            rows.append(along(plane, row_dim))
        elif live == [column_dim]:
            columns.append(along(plane, column_dim))
        else:
            tracer.pin(plane, Reason.COMPUTED_KERNEL.because())
    # Depthwise layers pass channels on; the weight of a transposed one numbers them along its columns.
    depthwise = groups > 1 and groups == x.shape[1]
    tracer.set_role(columns, "both" if depthwise and transposed else "in")
    tracer.set_role(rows, "both" if depthwise else "out")
    tracer.step("zero", [spread(vector, x.shape, 1) for vector in inputs])
    if groups > 1:
        rows, columns = _grouped(tracer, weight, (inputs, rows, columns), groups, transposed, call.out.shape[1])
    else:
        _consume(tracer, inputs, columns, x.shape[1])
    shape = tuple(call.out.shape)
    operands = [(Shadow((*(spread(vector, shape, 1) for vector in rows), *(p.expand(shape) for p in carried))), shape)]
    made_by = spread(rows[0], shape, 1) if len(rows) == 1 and groups == 1 else None
    if bias is not None:
        view = (1, -1) + (1,) * (len(shape) - 2)
        planes = tuple(plane.reshape(view) for plane in tracer.shadow(bias).planes)
        operands.append((Shadow(planes), (1, bias.shape[0]) + (1,) * (len(shape) - 2)))
    return Shadow(combine(tracer, operands, shape), rows=made_by)


def _untouched(call: Call, dim: int) -> bool:
    """Whether a convolution treats the positions of a dimension one by one, as with a kernel of one pixel."""
    if dim < 2:
        return dim == 0
    weight, _, stride, padding = call.args[1:5]
    return weight.shape[dim] == stride[dim - 2] == 1 and padding[dim - 2] == 0


def _along_channels(tracer: Tracer, x: Tensor) -> Shadow:
    """One kernel slides along the channels (efficient channel attention): then along the kept ones, side by side."""
    planes = tracer.shadow(x).planes
    tracer.step("kept", planes)
    return Shadow(planes)


def _consume(tracer: Tracer, inputs: Sequence[Tensor], columns: Sequence[Tensor], size: int) -> None:
    for p in inputs:
        for q in columns:
            pair_labels(tracer, p, q)
    if size > 1:
        for one, other in ((inputs, columns), (columns, inputs)):
            if one and not other:
                for vector in one:
                    tracer.pin(vector, Reason.FIXED_WIDTH_LAYER.because())


def _grouped(
    tracer: Tracer, weight: Tensor, vectors: Any, groups: int, transposed: bool, filters: int
) -> tuple[list[Tensor], list[Tensor]]:
    inputs, rows, columns = vectors
    owners = {tracer.registry.families[int(f)].owner for v in (*rows, *columns)
              for f in tracer.registry.family_of(v[v != 0][:1])}  # fmt: skip
    if transposed:
        # (C, N / g, ...): rows number the filters of one group, columns all input channels.
        columns_of_groups = columns
        rows, columns = [], []
        for vector in columns_of_groups:
            _consume(tracer, inputs, [vector], len(vector))
        whole = True
        carriers = [v.view(groups, -1) for v in columns_of_groups]
        for row in vectors[1]:
            tracer.pin(row, Reason.GROUPED_TRANSPOSED.because())
        united = [_one_label(tracer, v, 1)[:, 0] for v in carriers]
        out = [v.repeat_interleave(filters // groups) for v in united]
        return out, []
    carriers = [v.view(groups, -1) for v in inputs]
    makers = [v.view(groups, -1) for v in rows]
    whole = _whole_groups(carriers, makers, groups, weight.shape[1])
    axis = 1 if whole else 0
    carriers = [_one_label(tracer, v, axis) for v in carriers]
    makers = [_one_label(tracer, v, axis) for v in makers]
    if whole:
        _consume(tracer, [v[:, 0] for v in carriers], [v[:, 0] for v in makers], groups)
        for vector in columns:
            tracer.pin(vector, Reason.WHOLE_GROUPS.because())
    else:
        _consume(tracer, [v[0] for v in carriers], columns, weight.shape[1])
    for owner in owners:
        if inputs:
            tracer.group_inputs[owner] = inputs[0]
    if whole and weight.shape[1] == 1 and inputs and tracer.call is not None:
        _, args, kwargs = tracer.call
        if not (tracer.stack and isinstance(tracer.stack[-1], nn.modules.conv._ConvNd)):
            tracer.check_size(inputs[0], kwargs.get("groups", args[6] if len(args) > 6 else None))
    return [v.reshape(-1) for v in makers], columns


def _whole_groups(carriers: Sequence[Tensor], makers: Sequence[Tensor], groups: int, width: int) -> bool:
    """Whether whole groups go: always for depthwise, where labels say so already, or where groups are many."""
    if width == 1 or any(v.shape[1] == 1 for v in makers):
        return True
    for vector in (*carriers, *makers):
        by_group = bool((vector == vector[:, :1]).all())
        by_place = bool((vector == vector[:1]).all())
        if by_group != by_place:
            return by_group
    return groups > width


def _one_label(tracer: Tracer, grid: Tensor, axis: int) -> Tensor:
    flat = held_constant(grid, [axis])
    tracer.unite(grid, flat)
    return flat
