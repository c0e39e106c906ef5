"""Parts of tensors: ranges, single positions, positions by number, sliding windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from norton_plugin.channels.label_maps import Shadow, along, core, varying
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.rules.move import fixed_along
from norton_plugin.channels.rules.reshape import united
from norton_plugin.channels.tracer import Tracer
from norton_plugin.reasons import Reason


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk", "unsafe_split_with_sizes")
def split(tracer: Tracer, call: Call) -> list[Shadow]:
    """Equal parts lose the same channels; of unequal ones each has its own."""
    dim = call.arg(2, "dim", 0) % call.args[0].dim()
    sizes = [part.shape[dim] for part in call.out]
    parts: list[list[Tensor]] = [[] for _ in sizes]
    given = _given_parts(tracer, len(sizes))
    for plane in tracer.shadow(call.args[0]).planes:
        pieces = list(plane.split(sizes, dim))
        if dim in varying(plane):
            if len(set(sizes)) == 1:
                for piece in pieces[1:]:
                    tracer.unite(pieces[0], piece)
                pieces = [pieces[0]] * len(pieces)
            for piece, size in zip(pieces, given, strict=True):
                if piece.shape[dim] > 1:
                    tracer.check_size(along(piece, dim), size, along(plane, dim))
        for place, piece in zip(parts, pieces, strict=True):
            place.append(piece)
    rows = tracer.shadow(call.args[0]).rows
    pieces = [None] * len(sizes) if rows is None else list(rows.split(sizes, dim))
    return [Shadow(tuple(planes), rows=piece) for planes, piece in zip(parts, pieces, strict=True)]


def _given_parts(tracer: Tracer, count: int) -> list[Any]:
    if tracer.call is None or tracer.call[0] not in ("split", "split_with_sizes"):
        return [None] * count
    _, args, kwargs = tracer.call
    sizes = args[1] if len(args) > 1 else next(iter(kwargs.values()), None)
    if isinstance(sizes, tuple | list):
        return list(sizes) if len(sizes) == count else [None] * count
    return [sizes] * count


@rule("slice", "narrow")
def cut(tracer: Tracer, call: Call) -> Shadow:
    """A range of positions; one of several equal parts is treated as by split."""
    source = call.args[0]
    dim = call.arg(1, "dim", 0) % source.dim()
    planes = []
    for plane in tracer.shadow(source).planes:
        size, length = source.shape[dim], call.out.shape[dim]
        piece = call.func(plane, *call.args[1:], **call.kwargs)
        if dim in varying(plane) and length < size:
            start = call.arg(2, "start", 0) or 0
            start = start + size if start < 0 else start
            step = call.arg(4, "step", 1) if call.name == "slice" else 1
            if step != 1 and size == step * length:
                # What every step'th channel is taken for, as by rotary positions, goes with those it is taken from.
                runs = plane.unflatten(dim, (length, step))
                piece = united(tracer, runs, [dim + 1]).select(dim + 1, 0)
            elif step != 1:
                tracer.pin(plane, Reason.BY_POSITION.because(which="every k-th"))
            elif size == 2 * length and start % length == 0:
                halves = plane.split(length, dim)
                tracer.unite(halves[0], halves[1])
                piece = halves[0]
                _note_bounds(tracer, along(halves[0], dim), length)
            else:
                _note_bounds(tracer, along(plane.narrow(dim, 0, start), dim) if start else None, start)
                if start + length < size:
                    _note_bounds(tracer, along(plane.narrow(dim, 0, start + length), dim), start + length)
        planes.append(piece)
    rows = tracer.shadow(source).rows
    return Shadow(tuple(planes), rows=None if rows is None else call.func(rows, *call.args[1:], **call.kwargs))


def _note_bounds(tracer: Tracer, labels: Tensor | None, bound: int) -> None:
    """Finds the integer in the index expression that ran, and relates it to the channels before it."""
    if labels is None or tracer.call is None or tracer.call[0] not in ("__getitem__", "narrow"):
        return
    entries = tracer.call[1][1] if len(tracer.call[1]) > 1 else ()
    for entry in entries if isinstance(entries, tuple) else (entries,):
        if isinstance(entry, slice):
            for value in (entry.start, entry.stop):
                if isinstance(value, int) and value == bound:
                    tracer.check_size(labels, value)
                    return


@rule("select", "unbind")
def pick(tracer: Tracer, call: Call) -> Any:
    """One position: channels along that dimension are addressed by number and must stay."""
    dim = call.arg(1, "dim", 0) % call.args[0].dim()
    kept = []
    for plane in tracer.shadow(call.args[0]).planes:
        if dim in varying(plane):
            tracer.pin(plane, Reason.BY_POSITION.because(which="one"))
        else:
            kept.append(plane.select(dim, 0))
    rows = tracer.shadow(call.args[0]).rows
    if isinstance(call.out, Tensor):
        return Shadow(tuple(kept), rows=None if rows is None else rows.select(dim, call.arg(2, "index", 0)))
    return [Shadow(tuple(kept), rows=None if rows is None else rows.select(dim, i)) for i in range(len(call.out))]


@rule("index", "index_select", "gather", "take_along_dim", "_unsafe_index")
def index(tracer: Tracer, call: Call) -> Shadow | None:
    """Positions by number: channels along the indexed dimensions must stay."""
    source = call.args[0]
    if call.name in ("index", "_unsafe_index"):
        dims = []
        position = 0
        for entry in call.args[1]:
            width = entry.dim() if entry is not None and entry.dtype in (torch.bool, torch.uint8) else 1
            if entry is not None:
                dims += list(range(position, position + width))
            position += width
    else:
        dims = [call.args[1] % source.dim()]
    planes = fixed_along(tracer, call, dims, Reason.BY_POSITION.because(which="some"))
    if call.name == "gather":
        return Shadow(tuple(core(p).expand(call.out.shape) for p in planes if set(varying(p)) <= _equal(p, call.out)))
    return Shadow(tuple(call.func(plane.contiguous(), *call.args[1:]) for plane in planes))


def _equal(plane: Tensor, out: Tensor) -> set[int]:
    return {d for d in range(plane.dim()) if plane.shape[d] == out.shape[d]}


@rule("embedding")
def embedding(tracer: Tracer, call: Call) -> Shadow:
    """Rows by number; the columns are channels."""
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if 0 in varying(plane):
            tracer.pin(plane, Reason.ROWS_BY_NUMBER.because())
        else:
            planes.append(plane[0].expand(call.out.shape))
            tracer.set_role([plane], "out")
    return Shadow(tuple(planes))


@rule("unfold")
def windows(tracer: Tracer, call: Call) -> Shadow:
    """Sliding windows along one dimension."""
    planes = fixed_along(tracer, call, [call.args[1]], Reason.OVER_CHANNELS.because(operation="a sliding window"))
    return Shadow(tuple(plane.unfold(*call.args[1:]) for plane in planes))
