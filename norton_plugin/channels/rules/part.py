"""Parts of tensors: ranges, single positions, positions by number, sliding windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from norton_plugin.channels.label_maps import ChannelLabels, along, core, varying
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.given import part_sizes, slice_bounds
from norton_plugin.channels.rules.move import fixed_along
from norton_plugin.channels.rules.reshape import united
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason


@register_rule(
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_chunk",
    "chunk",
    "unsafe_split_with_sizes",
    sizes={"split": part_sizes, "split_with_sizes": part_sizes},
)
def split(trace: Trace, call: Call) -> list[ChannelLabels]:
    """Unite equal parts position by position; of unequal parts each has channels of its own."""
    dim = call.arg(2, "dim", 0) % call.args[0].dim()
    sizes = [part.shape[dim] for part in call.out]
    maps: list[list[Tensor]] = [[] for _ in sizes]
    given = _given_for_each(trace, len(sizes))
    for label_map in trace.labels_of(call.args[0]).maps:
        pieces = list(label_map.split(sizes, dim))
        if dim in varying(label_map):
            if len(set(sizes)) == 1:
                for piece in pieces[1:]:
                    trace.unite(pieces[0], piece)
                pieces = [pieces[0]] * len(pieces)
            for piece, size in zip(pieces, given, strict=True):
                if piece.shape[dim] > 1:
                    trace.relate_size(along(piece, dim), size, along(label_map, dim))
        for own, piece in zip(maps, pieces, strict=True):
            own.append(piece)
    rows = trace.labels_of(call.args[0]).producer_rows
    parts = list(zip(*(own.split(sizes, dim) for own in rows), strict=True)) or [()] * len(sizes)
    return [ChannelLabels(tuple(own), producer_rows=part) for own, part in zip(maps, parts, strict=True)]


def _given_for_each(trace: Trace, count: int) -> list[Any]:
    """Return the size that the code gave for each part, None where it gave none."""
    given = trace.given_sizes()
    if given is None:
        return [None] * count
    if len(given) == 1:
        return given * count
    return given if len(given) == count else [None] * count


@register_rule("slice", sizes={"__getitem__": slice_bounds})
def cut(trace: Trace, call: Call) -> ChannelLabels:
    """Take a range of positions; one of two equal parts is treated as by split."""
    source = call.args[0]
    dim = call.arg(1, "dim", 0) % source.dim()
    size, length, step = source.shape[dim], call.out.shape[dim], call.arg(4, "step", 1)
    start = call.arg(2, "start", 0) or 0
    start = start + size if start < 0 else start
    maps = []
    for label_map in trace.labels_of(source).maps:
        piece = call.func(label_map, *call.args[1:], **call.kwargs)
        if dim in varying(label_map) and length < size:
            if step != 1 and size == step * length:
                # Every k-th channel, as for rotary positions: it goes together with its k - 1 neighbours.
                runs = label_map.unflatten(dim, (length, step))
                piece = united(trace, runs, [dim + 1]).select(dim + 1, 0)
            elif step != 1:
                trace.pin(label_map, Reason.BY_POSITION.because(which="every k-th"))
            else:
                piece = _range(trace, label_map, piece, dim, start)
        maps.append(piece)
    rows = trace.labels_of(source).producer_rows
    rows = tuple(call.func(own, *call.args[1:], **call.kwargs) for own in rows)
    return ChannelLabels(tuple(maps), producer_rows=rows)


def _range(trace: Trace, label_map: Tensor, piece: Tensor, dim: int, start: int) -> Tensor:
    """Return the labels of consecutive positions, and relate the bounds to the channels before them."""
    size, length = label_map.shape[dim], piece.shape[dim]
    if size == 2 * length and start % length == 0:
        halves = label_map.split(length, dim)
        if not _alike(*halves):
            trace.unite(halves[0], halves[1])
            piece = halves[0]
        _relate_bound(trace, along(halves[0], dim), length)
        return piece
    for bound in (start, start + length):
        if 0 < bound < size:
            _relate_bound(trace, along(label_map.narrow(dim, 0, bound), dim), bound)
    return piece


def _alike(first: Tensor, second: Tensor) -> bool:
    """Return whether each label stands as often in both halves, in any order: then they lose equally many."""
    one, other = (torch.unique(core(half), return_counts=True) for half in (first, second))
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def _relate_bound(trace: Trace, labels: Tensor, bound: int) -> None:
    """Find the bound in the index expression that ran, and relate it to the channels before it."""
    value = next((value for value in trace.given_sizes() or [] if value == bound), None)
    if value is not None:
        trace.relate_size(labels, value)


@register_rule("select", "unbind")
def pick(trace: Trace, call: Call) -> Any:
    """Take single positions: channels along that dimension are addressed by number and must stay."""
    dim = call.arg(1, "dim", 0) % call.args[0].dim()
    kept = []
    for label_map in trace.labels_of(call.args[0]).maps:
        if dim in varying(label_map):
            trace.pin(label_map, Reason.BY_POSITION.because(which="one"))
        else:
            kept.append(label_map.select(dim, 0))
    rows = trace.labels_of(call.args[0]).producer_rows
    single = isinstance(call.out, Tensor)
    indices = [call.arg(2, "index", 0)] if single else range(len(call.out))
    picked = [ChannelLabels(tuple(kept), producer_rows=tuple(own.select(dim, i) for own in rows)) for i in indices]
    return picked[0] if single else picked


_BY_POSITION = Reason.BY_POSITION.because(which="some")


@register_rule("index", "_unsafe_index")
def index(trace: Trace, call: Call) -> ChannelLabels:
    """Take positions by number or by mask: channels along the indexed dimensions must stay."""
    dims = []
    position = 0
    for entry in call.args[1]:
        width = entry.dim() if entry is not None and entry.dtype in (torch.bool, torch.uint8) else 1
        if entry is not None:
            dims += list(range(position, position + width))
        position += width
    return _taken(trace, call, dims)


@register_rule("index_select")
def index_select(trace: Trace, call: Call) -> ChannelLabels:
    """Take positions of one dimension by number: channels along it must stay."""
    return _taken(trace, call, [call.args[1]])


def _taken(trace: Trace, call: Call, dims: list[int]) -> ChannelLabels:
    maps = fixed_along(trace, call, dims, _BY_POSITION)
    return ChannelLabels(tuple(call.func(label_map.contiguous(), *call.args[1:]) for label_map in maps))


@register_rule("gather")
def gather(trace: Trace, call: Call) -> ChannelLabels:
    """Take positions of one dimension by number, others at each place: channels along it must stay."""
    maps = []
    for label_map in fixed_along(trace, call, [call.args[1]], _BY_POSITION):
        equal = {d for d in range(label_map.dim()) if label_map.shape[d] == call.out.shape[d]}
        if set(varying(label_map)) <= equal:
            maps.append(core(label_map).expand(call.out.shape))
    return ChannelLabels(tuple(maps))


@register_rule("embedding")
def embedding(trace: Trace, call: Call) -> ChannelLabels:
    """Look up rows by number; the columns are channels."""
    maps = []
    for label_map in trace.labels_of(call.args[0]).maps:
        if 0 in varying(label_map):
            trace.pin(label_map, Reason.ROWS_BY_NUMBER.because())
        else:
            maps.append(label_map[0].expand(call.out.shape))
            trace.set_role([label_map], "out")
    return ChannelLabels(tuple(maps))


@register_rule("unfold")
def windows(trace: Trace, call: Call) -> ChannelLabels:
    """Slide windows along one dimension: channels along it must stay."""
    maps = fixed_along(trace, call, [call.args[1]], Reason.OVER_CHANNELS.because(operation="a sliding window"))
    return ChannelLabels(tuple(label_map.unfold(*call.args[1:]) for label_map in maps))
