"""Reshapes: dimensions are merged and split."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from norton_plugin.channels.label_maps import Shadow, along, chunks, compact, held_constant, varying
from norton_plugin.channels.provenance import given_sizes
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.tracer import Tracer
from norton_plugin.channels.widths import Width
from norton_plugin.reasons import Reason

# A trailing factor of at most this size is taken for a kernel or a zoom factor, not for the channels of a head.
_SMALL = 4


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
                tracer.pin(size.labels, Reason.FOREIGN_SIZE.because())
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
