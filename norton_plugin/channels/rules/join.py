"""Tensors put together: tiles, concatenation, writing in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from norton_plugin.channels.label_maps import Shadow, compact, core, varying
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.rules.elementwise import combine
from norton_plugin.channels.tracer import Tracer


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
    dim = call.arg(1, "dim", 0) % call.out.dim()
    joined = _joined(tracer, [(t, tracer.shadow(t).planes) for t in tensors], dim, call)
    return joined._replace(rows=_joined_rows(tracer, tensors, lambda rows: torch.cat(rows, dim)))


@rule("stack")
def stack(tracer: Tracer, call: Call) -> Shadow:
    """The same along a new dimension."""
    dim = call.arg(1, "dim", 0) % call.out.dim()
    entries: list[tuple[Tensor, Sequence[Tensor]]] = [
        (t.unsqueeze(dim), [p.unsqueeze(dim) for p in tracer.shadow(t).planes]) for t in call.args[0]
    ]
    rows = _joined_rows(tracer, call.args[0], lambda rows: torch.stack(rows, dim))
    return _joined(tracer, entries, dim, call)._replace(rows=rows)


def _joined_rows(tracer: Tracer, tensors: Sequence[Tensor], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    rows = [tracer.shadow(tensor).rows for tensor in tensors]
    return None if any(entry is None for entry in rows) else compact(join(rows))  # type: ignore[arg-type]


def _joined(tracer: Tracer, entries: list[tuple[Tensor, Sequence[Tensor]]], dim: int, call: Call) -> Shadow:
    shape = tuple(call.out.shape)
    across: list[tuple[Shadow, tuple[int, ...]]] = []
    lengthwise: list[list[Tensor]] = []
    for tensor, planes in entries:
        side: list[Tensor] = []
        own: list[Tensor] = []
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


@rule("copy")
def copy(tracer: Tracer, call: Call) -> Shadow:
    """Written in place: the destination's channels and the source's are the same from now on."""
    target, source = call.args[0], call.args[1]
    old, new = tracer.shadow(target), tracer.shadow(source)
    shape = tuple(target.shape)
    return Shadow(combine(tracer, [(old, shape), (new, tuple(source.shape))], shape))


@rule("index_put")
def put(tracer: Tracer, call: Call) -> Shadow | None:
    """Rows written into a tensor, as the boxes of one level of a pyramid among all: its channels are theirs."""
    target, indices, source = call.args[:3]
    old, new = tracer.shadow(target), tracer.shadow(source)
    if source.numel() == 0:
        return old
    rows_alone = len(indices) == 1 and indices[0].dim() == 1 and source.dim() == target.dim() and not target._is_view()
    if not rows_alone or any(0 in varying(plane) for plane in (*old.planes, *new.planes)):
        return None
    shape = (1, *target.shape[1:])
    operands = [(Shadow(tuple(p.narrow(0, 0, 1) for p in s.planes), s.constant), shape) for s in (old, new)]
    return Shadow(tuple(plane.expand(target.shape) for plane in combine(tracer, operands, shape)))
