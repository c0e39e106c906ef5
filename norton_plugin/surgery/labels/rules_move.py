"""Operations that move elements: the labels move with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from norton_plugin.surgery.labels.planes import (
    Shadow,
    along,
    chunks,
    compact,
    core,
    held_constant,
    varying,
)
from norton_plugin.surgery.labels.tracer import Call, Tracer, given_sizes, rule
from norton_plugin.surgery.labels.widths import Width

# A trailing factor of at most this size is taken for a kernel or a zoom factor, not for the channels of a head.
_SMALL = 4


def _map(tracer: Tracer, call: Call, function: Any) -> Shadow:
    shadow = tracer.shadow(call.args[0])
    rows = None if shadow.rows is None else function(shadow.rows)
    return Shadow(tuple(function(plane) for plane in shadow.planes), shadow.constant, rows)


@rule("permute", "transpose", "t", "unsqueeze", "squeeze", "movedim", "swapaxes", "alias", "detach", "lift_fresh")
def move(tracer: Tracer, call: Call) -> Shadow:
    """Dimensions change places."""
    return _map(tracer, call, lambda plane: call.func(plane, *call.args[1:], **call.kwargs))


@rule("clone", "contiguous", "_to_copy", "native_dropout", "dropout", "_conj", "positive", "fill", "zero", "to")
def same(tracer: Tracer, call: Call) -> Any:
    """Every element stays where it is."""
    shadow = tracer.shadow(call.args[0])
    return [shadow, shadow] if isinstance(call.out, tuple) else shadow


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli")
def like(tracer: Tracer, call: Call) -> Shadow:
    """A constant made to fit a tensor has its channels."""
    return tracer.shadow(call.args[0])


@rule("zeros", "ones", "empty", "rand", "randn", "new_zeros", "new_ones")
def factory(tracer: Tracer, call: Call) -> Shadow:
    """A constant whose sizes were read off a tensor has that tensor's channels."""
    planes = []
    for d, size in enumerate(given_sizes(tracer, call.out.dim()) or []):
        if isinstance(size, Width) and len(size.labels) == call.out.shape[d]:
            view = [1] * call.out.dim()
            view[d] = -1
            planes.append(size.labels.view(view).expand(call.out.shape))
    return Shadow(tuple(planes))


@rule("as_strided")
def as_strided(tracer: Tracer, call: Call) -> Shadow | None:
    """Other strides of the same elements, as pooling to one pixel returns them."""
    if call.out.shape != call.args[0].shape or call.arg(3, "storage_offset"):
        return None
    return tracer.shadow(call.args[0])


@rule("expand")
def expand(tracer: Tracer, call: Call) -> Shadow:
    """Elements are repeated."""
    given = given_sizes(tracer, call.out.dim())
    shadow = _map(tracer, call, lambda plane: plane.expand(call.out.shape))
    if given is not None:
        for d, size in enumerate(given):
            touched = [plane for plane in shadow.planes if d in varying(compact(plane))]
            for plane in touched:
                tracer.check_size(along(plane, d), size)
            if not touched and isinstance(size, Width):
                tracer.pin(size.labels, "its width is the size of a tensor of other origin")
    return shadow


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten")
def reshape(tracer: Tracer, call: Call) -> Shadow:
    """Dimensions are merged and split; of a split channel dimension one factor goes on numbering channels."""
    source, target = call.args[0], call.out
    planes = [reshaped(tracer, plane, tuple(target.shape)) for plane in tracer.shadow(source).planes]
    given = given_sizes(tracer, target.dim())
    if given is not None:
        origin = {d: left for left, right in chunks(source.shape, target.shape) for d in right}
        before = tracer.shadow(source).planes
        for d, size in enumerate(given):
            touched = [plane for plane in planes if d in varying(plane)]
            for plane in touched:
                tracer.check_size(along(plane, d), size, _whole(before, origin[d]))
            if not touched and isinstance(size, Width) and target.shape[d] > 1:
                tracer.pin(size.labels, "its width is the size of a tensor of other origin")
    rows = tracer.shadow(source).rows
    return Shadow(tuple(planes), rows=None if rows is None else compact(rows.reshape(target.shape)))


def _whole(planes: Sequence[Tensor], dims: Sequence[int]) -> Tensor | None:
    """Labels along the one dimension that was split, or None."""
    if len(dims) != 1:
        return None
    return next((along(plane, dims[0]) for plane in planes if dims[0] in varying(plane)), None)


def reshaped(tracer: Tracer, plane: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A plane in a new shape; where a dimension splits, labels that must vanish together are united."""
    moved = compact(plane.reshape(shape))
    for _, target in chunks(plane.shape, shape):
        live = [d for d in varying(moved) if d in target]
        if len(live) > 1:
            moved = united(tracer, moved, [d for d in live if d != _numbering(live, shape)])
    return moved


def _numbering(dims: Sequence[int], shape: Sequence[int]) -> int:
    """Which factor of a split dimension goes on numbering channels: the last, unless it is a mere zoom factor."""
    if shape[dims[-1]] <= _SMALL and shape[dims[0]] > shape[dims[-1]]:
        return max(dims, key=lambda d: shape[d])
    return dims[-1]


def united(tracer: Tracer, plane: Tensor, dims: Sequence[int]) -> Tensor:
    """The plane with all labels along some dimensions made one."""
    flat = held_constant(plane, dims)
    tracer.unite(plane, flat)
    return compact(flat)


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
            if call.name == "slice" and call.arg(4, "step", 1) != 1:
                tracer.pin(plane, "every so manieth of its channels is taken")
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
            tracer.pin(plane, "one of its channels is taken out by position")
        else:
            kept.append(plane.select(dim, 0))
    rows = tracer.shadow(call.args[0]).rows
    if isinstance(call.out, Tensor):
        return Shadow(tuple(kept), rows=None if rows is None else rows.select(dim, call.arg(2, "index", 0)))
    return [Shadow(tuple(kept), rows=None if rows is None else rows.select(dim, i)) for i in range(len(call.out))]


@rule("flip")
def flip(tracer: Tracer, call: Call) -> Shadow:
    """Order is reversed, which commutes with removal."""
    return _map(tracer, call, lambda plane: call.func(core(plane), *call.args[1:]).expand(plane.shape))


def _fixed_along(tracer: Tracer, call: Call, dims: Sequence[int], why: str) -> list[Tensor]:
    """Planes that do not vary along these dimensions; the channels of the others are pinned."""
    kept = []
    for plane in tracer.shadow(call.args[0]).planes:
        if set(varying(plane)) & {d % plane.dim() for d in dims}:
            tracer.pin(plane, why)
        else:
            kept.append(plane)
    return kept


@rule("roll")
def roll(tracer: Tracer, call: Call) -> Shadow:
    """A rotation by a fixed number of places."""
    dims = call.arg(2, "dims", ()) or range(call.args[0].dim())
    return Shadow(tuple(_fixed_along(tracer, call, dims, "its channels are rotated by a fixed number of places")))


@rule("constant_pad_nd", "pad")
def pad(tracer: Tracer, call: Call) -> Shadow:
    """Constants are added around: they belong to no channel."""
    return _map(tracer, call, lambda plane: _padded(plane, call.args[1]))


def _padded(plane: Tensor, widths: Sequence[int]) -> Tensor:
    live = set(varying(plane))
    inner, outer = list(widths), []
    for position in range(0, len(widths), 2):
        dim = plane.dim() - 1 - position // 2
        if dim not in live:
            # Labels hold for the whole slab, border included: it vanishes with the channel.
            outer.append((dim, widths[position] + widths[position + 1]))
            inner[position] = inner[position + 1] = 0
    shape = list(plane.shape)
    small = torch.nn.functional.pad(core(plane), inner)
    for dim, extra in outer:
        shape[dim] += extra
    for dim in live:
        shape[dim] = small.shape[dim]
    return small.expand(shape)


@rule("repeat")
def repeat(tracer: Tracer, call: Call) -> Shadow:
    """Tiles; along a channel dimension every tile loses the same channels."""
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        lead = len(call.args[1]) - plane.dim()
        plane = plane.expand((1,) * lead + tuple(plane.shape))
        live = varying(plane)
        tiles = [n if d in live else 1 for d, n in enumerate(call.args[1])]
        planes.append(core(plane).repeat(tiles).expand(call.out.shape))
    return Shadow(tuple(planes))


@rule("cat", "concat", "concatenate")
def cat(tracer: Tracer, call: Call) -> Shadow:
    """Side by side along one dimension; along the others the operands' channels are the same."""
    tensors = [t for t in call.args[0] if t.numel() or t.dim() > 1]
    return _joined(
        tracer, [(t, tracer.shadow(t).planes) for t in tensors], call.arg(1, "dim", 0) % call.out.dim(), call
    )


@rule("stack")
def stack(tracer: Tracer, call: Call) -> Shadow:
    """The same along a new dimension."""
    dim = call.arg(1, "dim", 0) % call.out.dim()
    entries = [(t.unsqueeze(dim), [p.unsqueeze(dim) for p in tracer.shadow(t).planes]) for t in call.args[0]]
    return _joined(tracer, entries, dim, call)


def _joined(tracer: Tracer, entries: list[tuple[Tensor, Sequence[Tensor]]], dim: int, call: Call) -> Shadow:
    from norton_plugin.surgery.labels.rules_element import combine

    shape = tuple(call.out.shape)
    across: list[tuple[Shadow, tuple[int, ...]]] = []
    lengthwise: list[list[Tensor]] = []
    for tensor, planes in entries:
        side, own = [], []
        for plane in planes:
            (own if dim in varying(plane) else side).append(plane)
        lengthwise.append(own)
        border = tuple(1 if d == dim else n for d, n in enumerate(tensor.shape))
        across.append((Shadow(tuple(p.narrow(dim, 0, 1) for p in side)), border))
    common = tuple(1 if d == dim else n for d, n in enumerate(shape))
    planes_out = [plane.expand(shape) for plane in combine(tracer, across, common)]
    for level in range(max(map(len, lengthwise))):
        pieces = []
        for (tensor, _), own in zip(entries, lengthwise, strict=True):
            pieces.append(own[level] if level < len(own) else torch.zeros(1, dtype=torch.long).expand(tensor.shape))
        live = sorted({d for piece in pieces for d in varying(piece)} | {dim})
        small = [piece[tuple(slice(None) if d in live else slice(0, 1) for d in range(len(shape)))] for piece in pieces]
        planes_out.append(torch.cat(small, dim).expand(shape))
    return Shadow(tuple(planes_out))


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
    planes = _fixed_along(tracer, call, dims, "some of its channels are taken out by position")
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
            tracer.pin(plane, "its rows are looked up by number")
        else:
            planes.append(plane[0].expand(call.out.shape))
            tracer.set_role([plane], "out")
    return Shadow(tuple(planes))


@rule("unfold")
def windows(tracer: Tracer, call: Call) -> Shadow:
    """Sliding windows along one dimension."""
    planes = _fixed_along(tracer, call, [call.args[1]], "windows slide over its channels")
    return Shadow(tuple(plane.unfold(*call.args[1:]) for plane in planes))


@rule("copy")
def copy(tracer: Tracer, call: Call) -> Shadow:
    """Written in place: the destination's channels and the source's are the same from now on."""
    from norton_plugin.surgery.labels.rules_element import combine

    target, source = call.args[0], call.args[1]
    old, new = tracer.shadow(target), tracer.shadow(source)
    shape = tuple(target.shape)
    planes = combine(tracer, [(old, shape), (new, tuple(source.shape))], shape)
    if not old.planes and target._is_view():
        for plane in planes:
            tracer.pin(plane, "its channels are written into a buffer of fixed width")
    return Shadow(tuple(planes))
