"""Reshapes: dimensions are merged and split."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from norton_plugin.channels.label_maps import (
    ChannelLabels,
    along,
    compact,
    held_constant,
    matched_dimensions,
    varying,
)
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.given import after_tensor, unflattened
from norton_plugin.channels.trace import Trace
from norton_plugin.channels.widths import Width
from norton_plugin.reasons import Reason

# A trailing factor of at most this size is taken for a kernel or a zoom factor, not for the channels of a head.
_SMALL = 4


@register_rule(
    "view",
    "_unsafe_view",
    "reshape",
    "_reshape_alias",
    "flatten",
    sizes={"view": after_tensor, "reshape": after_tensor, "unflatten": unflattened},
)
def reshape(trace: Trace, call: Call) -> ChannelLabels:
    """Merge and split dimensions; of a split channel dimension one factor goes on numbering channels."""
    source, target = call.args[0], call.out
    before = trace.labels_of(source)
    maps = [reshaped(trace, label_map, tuple(target.shape)) for label_map in before.maps]
    given = trace.given_sizes(target.dim())
    if given is not None:
        origin = {d: left for left, right in matched_dimensions(source.shape, target.shape) for d in right}
        for d, size in enumerate(given):
            touched = [label_map for label_map in maps if d in varying(label_map)]
            for label_map in touched:
                trace.relate_size(along(label_map, d), size, _whole(before.maps, origin[d]))
            if not touched and isinstance(size, Width) and target.shape[d] > 1:
                trace.pin(size.labels, Reason.FOREIGN_SIZE.because())
    rows = tuple(compact(own.reshape(target.shape)) for own in before.producer_rows)
    stays = tuple(compact(label_map.reshape(target.shape)) for label_map in before.stays)
    return ChannelLabels(tuple(maps), producer_rows=rows, stays=stays)


def _whole(maps: Sequence[Tensor], dims: Sequence[int]) -> Tensor | None:
    """Return the labels along the one dimension that was split, or None."""
    if len(dims) != 1:
        return None
    return next((along(label_map, dims[0]) for label_map in maps if dims[0] in varying(label_map)), None)


def reshaped(trace: Trace, label_map: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a map in a new shape; where a dimension splits, labels that must be removed together are united."""
    moved = compact(label_map.reshape(shape))
    for _, target in matched_dimensions(label_map.shape, shape):
        live = [d for d in varying(moved) if d in target]
        if len(live) > 1:
            moved = united(trace, moved, [d for d in live if d != _numbering(live, shape)])
    return moved


def _numbering(dims: Sequence[int], shape: Sequence[int]) -> int:
    """Return the factor of a split dimension that goes on numbering channels: the last, unless it is a zoom factor."""
    if shape[dims[-1]] <= _SMALL and shape[dims[0]] > shape[dims[-1]]:
        return max(dims, key=lambda d: shape[d])
    return dims[-1]


def united(trace: Trace, label_map: Tensor, dims: Sequence[int]) -> Tensor:
    """Unite all labels along some dimensions; return the map with one of them in place of all."""
    flat = held_constant(label_map, dims)
    trace.unite(label_map, flat)
    return compact(flat)
