"""Convolutions: input channels are consumed, filters make new ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from norton_plugin.channels.label_maps import ChannelLabels, along, core, held_constant, spread, varying
from norton_plugin.channels.masking import AMONG_KEPT, ZERO_FIRST
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.elementwise import Operand, combine
from norton_plugin.channels.rules.given import convolution_groups
from norton_plugin.channels.rules.matrices import pair_labels
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason

# Labels along the input channels of a layer, along its filters, and along the columns of its weight.
Vectors = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]


@register_rule(
    "convolution",
    "_convolution",
    "conv2d",
    "mkldnn_convolution",
    "cudnn_convolution",
    makes_products=True,
    masked_by=(ZERO_FIRST, AMONG_KEPT),
    sizes=dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution_groups),
)
def convolution(trace: Trace, call: Call) -> ChannelLabels:
    """Follow a convolution; a grouped one loses the same channels of each group, or whole groups."""
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    if x.dim() == 3 and x.shape == call.out.shape and x.shape[1] == 1:
        return _along_channels(trace, x)
    inputs, carried = _inputs(trace, call)
    rows, columns = weight_vectors(trace, weight, transposed)
    if not columns and weight.shape[0 if transposed else 1] > 1 and not trace.labels_of(weight).constant:
        for vector in inputs:
            trace.pin(vector, Reason.COMPUTED_KERNEL.because())
    vectors = (inputs, rows, columns)
    return filtered(trace, call, vectors, bias=bias, groups=groups, transposed=transposed, carried=carried)


def filtered(
    trace: Trace,
    call: Call,
    vectors: Vectors,
    *,
    bias: Tensor | None,
    groups: int,
    transposed: bool = False,
    carried: Sequence[Tensor] = (),
) -> ChannelLabels:
    """Return the labels of a map that filters make of another.

    Args:
        trace: Takes unions, pins, roles and the masking of the first argument.
        call: The operation, whose first argument is the map that is read.
        vectors: Labels along the input channels, the filters (rows) and the columns of the weight.
        bias: Of the filters.
        groups: Channel groups.
        transposed: Whether the weight numbers input channels along its first dimension.
        carried: Cores of maps of the input that live on in the output.
    """
    inputs, rows, columns = vectors
    x = call.args[0]
    # Depthwise layers pass channels on; the weight of a transposed one numbers them along its columns.
    depthwise = groups > 1 and groups == x.shape[1]
    trace.set_role(columns, "both" if depthwise and transposed else "in")
    trace.set_role(rows, "both" if depthwise else "out")
    trace.mask([spread(vector, x.shape, 1) for vector in inputs])
    if groups == 1:
        _consume(trace, inputs, columns, x.shape[1])
    elif transposed:
        rows = _grouped_transposed(trace, (inputs, rows, columns), groups, call.out.shape[1])
    else:
        rows = _grouped(trace, (inputs, rows, columns), groups, call.args[1].shape[1])
    shape = tuple(call.out.shape)
    maps = (*(spread(vector, shape, 1) for vector in rows), *(label_map.expand(shape) for label_map in carried))
    operands: list[Operand] = [(ChannelLabels(maps), shape)]
    producer_rows = (spread(rows[0], shape, 1),) if len(rows) == 1 and groups == 1 else ()
    if bias is not None:
        view = (1, -1) + (1,) * (len(shape) - 2)
        own = tuple(label_map.reshape(view) for label_map in trace.labels_of(bias).maps)
        operands.append((ChannelLabels(own), (1, bias.shape[0]) + (1,) * (len(shape) - 2)))
    return ChannelLabels(combine(trace, operands, shape), producer_rows=producer_rows)


def _along_channels(trace: Trace, x: Tensor) -> ChannelLabels:
    """Follow a kernel that slides along the channels (efficient channel attention).

    In the masked model it slides along the kept ones, side by side.
    """
    maps = trace.labels_of(x).maps
    trace.mask(maps, by=AMONG_KEPT)
    return ChannelLabels(maps)


def _inputs(trace: Trace, call: Call) -> tuple[list[Tensor], list[Tensor]]:
    """Return labels along the input channels, and cores of the maps that the convolution leaves as they are."""
    inputs, carried = [], []
    for label_map in trace.labels_of(call.args[0]).maps:
        if varying(label_map) == [1]:
            inputs.append(along(label_map, 1))
        elif all(_untouched(call, d) for d in varying(label_map)):
            carried.append(core(label_map))
        else:
            trace.pin(label_map, Reason.OVER_CHANNELS.because(operation="a convolution"))
    return inputs, carried


def _untouched(call: Call, dim: int) -> bool:
    """Return whether the positions of a dimension are treated one by one, as with a kernel of one pixel."""
    if dim < 2:
        return dim == 0
    weight, _, stride, padding = call.args[1:5]
    return weight.shape[dim] == stride[dim - 2] == 1 and padding[dim - 2] == 0


def weight_vectors(trace: Trace, weight: Tensor, transposed: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Return labels along the filters (rows) and along the input channels (columns) of a weight."""
    row_dim, column_dim = (1, 0) if transposed else (0, 1)
    rows, columns = [], []
    for label_map in trace.labels_of(weight).maps:
        live = varying(label_map)
        if live == [row_dim]:
            rows.append(along(label_map, row_dim))
        elif live == [column_dim]:
            columns.append(along(label_map, column_dim))
        else:
            trace.pin(label_map, Reason.COMPUTED_KERNEL.because())
    return rows, columns


def _consume(trace: Trace, inputs: Sequence[Tensor], columns: Sequence[Tensor], size: int) -> None:
    """Unite the input channels with those that the weight expects."""
    for p in inputs:
        for q in columns:
            pair_labels(trace, p, q)
    if size > 1:
        for one, other in ((inputs, columns), (columns, inputs)):
            for vector in one if not other else ():
                trace.pin(vector, Reason.FIXED_WIDTH_LAYER.because())


def _grouped_transposed(trace: Trace, vectors: Vectors, groups: int, filters: int) -> list[Tensor]:
    """Return the labels of the outputs: whole groups are removed, and the filters of one group stay.

    The weight is (C, N / groups, ...): its rows number the filters of one group, its columns all input channels.
    """
    inputs, rows, columns = vectors
    for vector in columns:
        _consume(trace, inputs, [vector], len(vector))
    for row in rows:
        trace.pin(row, Reason.GROUPED_TRANSPOSED.because())
    united = [_one_label(trace, vector.view(groups, -1), 1)[:, 0] for vector in columns]
    return [vector.repeat_interleave(filters // groups) for vector in united]


def _grouped(trace: Trace, vectors: Vectors, groups: int, width: int) -> list[Tensor]:
    """Return the labels of the outputs of a grouped convolution, each group of which reads ``width`` channels."""
    inputs, rows, columns = vectors
    owners = {axis.owner for vector in (*rows, *columns) for axis in trace.axes_in(vector[vector != 0][:1])}
    by_input = [vector.view(groups, -1) for vector in inputs]
    by_filter = [vector.view(groups, -1) for vector in rows]
    whole = _whole_groups(by_input, by_filter, groups, width)
    axis = 1 if whole else 0
    by_input = [_one_label(trace, grid, axis) for grid in by_input]
    by_filter = [_one_label(trace, grid, axis) for grid in by_filter]
    if whole:
        _consume(trace, [grid[:, 0] for grid in by_input], [grid[:, 0] for grid in by_filter], groups)
        for vector in columns:
            trace.pin(vector, Reason.WHOLE_GROUPS.because())
    else:
        _consume(trace, [grid[0] for grid in by_input], columns, width)
    for owner in owners if inputs else ():
        trace.notes.group_inputs[owner] = inputs[0]
    if whole and width == 1 and inputs and not isinstance(trace.module, nn.modules.conv._ConvNd):
        for given in trace.given_sizes() or ():
            trace.relate_size(inputs[0], given)
    return [grid.reshape(-1) for grid in by_filter]


def _whole_groups(by_input: Sequence[Tensor], by_filter: Sequence[Tensor], groups: int, width: int) -> bool:
    """Return whether whole groups go: always for depthwise, where labels say so already, or where groups are many."""
    if width == 1 or any(grid.shape[1] == 1 for grid in by_filter):
        return True
    for grid in (*by_input, *by_filter):
        by_group = bool((grid == grid[:, :1]).all())
        by_position = bool((grid == grid[:1]).all())
        if by_group != by_position:
            return by_group
    return groups > width


def _one_label(trace: Trace, grid: Tensor, axis: int) -> Tensor:
    """Unite all labels along an axis; return the grid with one of them in place of all."""
    flat = held_constant(grid, [axis])
    trace.unite(grid, flat)
    return flat
