"""Bilinear layers: every output sums the products of all pairs of two lists of channels."""

from __future__ import annotations

from torch import Tensor

from norton_plugin.channels.label_maps import ChannelLabels, along, spread, varying
from norton_plugin.channels.masking import ZERO_SECOND
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.matrices import pair_labels
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason

# How PyTorch lays (B, N), (O, N, M) and (B, M) out as (B, O, N, M), and what it sums over.
_LAYOUT = ([1, 3], [0], [1, 2], [2, 3])


@register_rule("_trilinear", makes_products=True, masked_by=ZERO_SECOND)
def bilinear(trace: Trace, call: Call) -> ChannelLabels | None:
    """Follow (B, N) and (B, M) through a weight (O, N, M): its columns of both kinds go with the channels read."""
    first, weight, second, *layout = call.args[:7]
    if tuple(layout) != _LAYOUT:
        return None
    by_dim: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for label_map in trace.labels_of(weight).maps:
        [dim, *others] = varying(label_map)
        if others:
            trace.pin(label_map, Reason.COMPUTED_KERNEL.because())
        else:
            by_dim[dim].append(along(label_map, dim))
    for operand, dim in ((first, 1), (second, 2)):
        _read(trace, operand, by_dim[dim])
    if trace.labels_of(weight).constant:
        for dim, vectors in by_dim.items():
            trace.set_role(vectors, "in" if dim else "out")
    trace.mask([spread(vector, weight.shape, dim) for dim in (1, 2) for vector in by_dim[dim]])
    return ChannelLabels(tuple(spread(vector, call.out.shape, 1) for vector in by_dim[0]))


def _read(trace: Trace, operand: Tensor, columns: list[Tensor]) -> None:
    """Unite the channels of (B, N) with the columns of the weight that read them."""
    inputs = []
    for label_map in trace.labels_of(operand).maps:
        if varying(label_map) == [1]:
            inputs.append(along(label_map, 1))
        else:
            trace.pin(label_map, Reason.OVER_CHANNELS.because(operation="a bilinear layer"))
    for p in inputs:
        for q in columns:
            pair_labels(trace, p, q)
    for one, other in ((inputs, columns), (columns, inputs)):
        for vector in one if not other and operand.shape[1] > 1 else ():
            trace.pin(vector, Reason.FIXED_WIDTH_MATRIX.because())
