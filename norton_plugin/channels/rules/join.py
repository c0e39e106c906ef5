"""Tensors put together: tiles, concatenation, writing in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from norton_plugin.channels.label_maps import ChannelLabels, compact, core, spread, varying
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.elementwise import combine
from norton_plugin.channels.rules.move import fixed_along
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason


@register_rule("repeat")
def repeat(trace: Trace, call: Call) -> ChannelLabels:
    """Tile the labels; along a channel dimension every tile loses the same channels."""
    maps = []
    for label_map in trace.labels_of(call.args[0]).maps:
        lead = len(call.args[1]) - label_map.dim()
        label_map = label_map.expand((1,) * lead + tuple(label_map.shape))
        live = varying(label_map)
        tiles = [n if d in live else 1 for d, n in enumerate(call.args[1])]
        maps.append(core(label_map).repeat(tiles).expand(call.out.shape))
    return ChannelLabels(tuple(maps))


@register_rule("cat", "concat", "concatenate")
def cat(trace: Trace, call: Call) -> ChannelLabels:
    """Put labels side by side along one dimension; along the others the operands' channels are the same."""
    tensors = [t for t in call.args[0] if t.numel() or t.dim() > 1]
    dim = call.arg(1, "dim", 0) % call.out.dim()
    joined = _joined(trace, [(t, trace.labels_of(t).maps) for t in tensors], dim, call)
    return joined._replace(producer_rows=_joined_rows(trace, tensors, lambda rows: torch.cat(rows, dim)))


@register_rule("stack")
def stack(trace: Trace, call: Call) -> ChannelLabels:
    """Put labels side by side along a new dimension."""
    dim = call.arg(1, "dim", 0) % call.out.dim()
    entries: list[tuple[Tensor, Sequence[Tensor]]] = [
        (t.unsqueeze(dim), [label_map.unsqueeze(dim) for label_map in trace.labels_of(t).maps]) for t in call.args[0]
    ]
    rows = _joined_rows(trace, call.args[0], lambda rows: torch.stack(rows, dim))
    return _joined(trace, entries, dim, call)._replace(producer_rows=rows)


def _joined_rows(trace: Trace, tensors: Sequence[Tensor], join: Callable[[list[Tensor]], Tensor]) -> tuple[Tensor, ...]:
    """Return producer rows side by side; those of fewer layers than their neighbours are filled up with none."""
    rows = [trace.labels_of(tensor).producer_rows for tensor in tensors]
    if not all(rows):
        return ()
    none = [torch.zeros(1, dtype=torch.long).expand(tensor.shape) for tensor in tensors]
    levels = range(max(map(len, rows)))
    filled = [[own[i] if i < len(own) else zero for own, zero in zip(rows, none, strict=True)] for i in levels]
    return tuple(compact(join(level)) for level in filled)


def _joined(trace: Trace, entries: list[tuple[Tensor, Sequence[Tensor]]], dim: int, call: Call) -> ChannelLabels:
    shape = tuple(call.out.shape)
    across: list[tuple[ChannelLabels, tuple[int, ...]]] = []
    lengthwise: list[list[Tensor]] = []
    for tensor, maps in entries:
        side: list[Tensor] = []
        own: list[Tensor] = []
        for label_map in maps:
            (own if dim in varying(label_map) else side).append(label_map)
        lengthwise.append(own)
        border = tuple(1 if d == dim else n for d, n in enumerate(tensor.shape))
        side += [spread(labels, border, d) for d, labels in trace.sizes_of_empty(tensor).items() if d != dim]
        across.append((ChannelLabels(tuple(label_map.narrow(dim, 0, 1) for label_map in side)), border))
    common = tuple(1 if d == dim else n for d, n in enumerate(shape))
    joined = [label_map.expand(shape) for label_map in combine(trace, across, common)]
    for level in range(max(map(len, lengthwise))):
        pieces = []
        for (tensor, _), own in zip(entries, lengthwise, strict=True):
            pieces.append(own[level] if level < len(own) else torch.zeros(1, dtype=torch.long).expand(tensor.shape))
        live = sorted({d for piece in pieces for d in varying(piece)} | {dim})
        small = [piece[tuple(slice(None) if d in live else slice(0, 1) for d in range(len(shape)))] for piece in pieces]
        joined.append(torch.cat(small, dim).expand(shape))
    return ChannelLabels(tuple(joined))


@register_rule("copy")
def copy(trace: Trace, call: Call) -> ChannelLabels:
    """Unite the channels of the destination and of the source that is written into it."""
    target, source = call.args[0], call.args[1]
    old, new = trace.labels_of(target), trace.labels_of(source)
    shape = tuple(target.shape)
    return ChannelLabels(combine(trace, [(old, shape), (new, tuple(source.shape))], shape))


@register_rule("index_put")
def put(trace: Trace, call: Call) -> ChannelLabels | None:
    """Follow rows written into a tensor (the boxes of one level of a pyramid among all): its channels are theirs.

    Rows are numbered along the first dimensions, by one list of numbers for each. A single row comes without the
    dimension that numbers it.
    """
    target, indices, source = call.args[:3]
    old, new = trace.labels_of(target), trace.labels_of(source)
    if source.numel() == 0:
        return old
    count = len(indices)
    listed = all(index is not None and index.dim() == 1 for index in indices)
    numbered = source.dim() - (target.dim() - count)
    if not listed or numbered not in (0, 1) or target._is_view():
        return None
    if any(d < count for label_map in old.maps for d in varying(label_map)):
        return None
    if any(d < numbered for label_map in new.maps for d in varying(label_map)):
        return None
    shape = tuple(target.shape[count:])
    operands = [
        (ChannelLabels(tuple(label_map[(0,) * first] for label_map in labels.maps), labels.constant), shape)
        for labels, first in ((old, count), (new, numbered))
    ]
    return ChannelLabels(tuple(label_map.expand(target.shape) for label_map in combine(trace, operands, shape)))


@register_rule("scatter", "scatter_add")
def scatter(trace: Trace, call: Call) -> ChannelLabels | None:
    """Follow values written to numbered places along one dimension: channels along it stay, others are the same."""
    target, source = call.args[0], call.arg(3, "src")
    dim = call.arg(1, "dim") % target.dim()
    old = fixed_along(trace, call, [dim], Reason.BY_POSITION.because(which="some"))
    if not isinstance(source, Tensor):
        return ChannelLabels(tuple(old))
    new = trace.labels_of(source)
    alike = all(a == b for d, (a, b) in enumerate(zip(target.shape, source.shape, strict=True)) if d != dim)
    if not alike or any(dim in varying(label_map) for label_map in new.maps):
        return None
    shape = tuple(1 if d == dim else size for d, size in enumerate(target.shape))
    operands = [
        (ChannelLabels(tuple(label_map.narrow(dim, 0, 1) for label_map in maps), labels.constant), shape)
        for labels, maps in ((trace.labels_of(target), old), (new, new.maps))
    ]
    return ChannelLabels(tuple(label_map.expand(target.shape) for label_map in combine(trace, operands, shape)))
