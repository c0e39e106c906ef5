"""Products of matrices, which sum over a dimension."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from norton_plugin.channels.label_maps import ChannelLabels, along, compact, held_constant, spread, varying
from norton_plugin.channels.masking import PAIRS_OVER_KEPT, ZERO_FIRST, ZERO_SECOND
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.attention import compensate_product
from norton_plugin.channels.rules.elementwise import combine, pin_unpaired, weighed_positions
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason


def contract(
    trace: Trace, a: ChannelLabels, b: ChannelLabels, shapes: tuple[Sequence[int], Sequence[int]]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Follow a product of (B, N, K) by (B, K, M).

    A channel along K is the same in both operands; one along N, M or B lives on in the result.

    Args:
        trace: Takes unions, pins and roles.
        a: Labels of the first operand.
        b: Labels of the second.
        shapes: Of both.

    Returns:
        Label maps of the result, and those of the first operand that are summed over.
    """
    (batch, n, k), m = shapes[0], shapes[1][2]
    summed_a, free_a = _summed_and_free(trace, a.maps, 2, 1)
    summed_b, free_b = _summed_and_free(trace, b.maps, 1, 2)
    for p in summed_a:
        for q in summed_b:
            pair_labels(trace, p[:, 0, :], q[:, :, 0])
    if k > 1:
        for one, other in ((summed_a, summed_b), (summed_b, summed_a)):
            for label_map in one if not other else ():
                trace.pin(label_map, Reason.FIXED_WIDTH_MATRIX.because())
    # A layer is one even where it computes from constants, as from a table of positions.
    layer = isinstance(trace.module, nn.Linear)
    for operand, partner, summed, free in ((a, b, summed_a, free_a), (b, a, summed_b, free_b)):
        if operand.constant and (not partner.constant or (layer and operand is b)):
            trace.set_role(summed, "in")
            trace.set_role(free, "out")
    left = ChannelLabels(tuple(label_map.narrow(2, 0, 1) for label_map in free_a), a.constant)
    right = ChannelLabels(tuple(label_map.narrow(1, 0, 1) for label_map in free_b), b.constant)
    maps = combine(trace, [(left, (batch, n, 1)), (right, (batch, 1, m))], (batch, n, m))
    return maps, summed_a


def pair_labels(trace: Trace, p: Tensor, q: Tensor) -> None:
    """Unite two lists of channels that are multiplied and summed over; one without a partner has to stay."""
    trace.unite(p, q)
    pin_unpaired(trace, p, q)


def _summed_and_free(trace: Trace, maps: Sequence[Tensor], summed: int, free: int) -> tuple[list[Tensor], list[Tensor]]:
    """Sort maps by whether they vary along the dimension that is summed over."""
    consumed, kept = [], []
    for label_map in maps:
        live = varying(label_map)
        if summed not in live:
            kept.append(label_map)
            continue
        if free in live:
            flat = held_constant(label_map, [free])
            trace.unite(label_map, flat)
            label_map = compact(flat)
        consumed.append(label_map)
    return consumed, kept


def _batched(labels: ChannelLabels) -> ChannelLabels:
    return ChannelLabels(tuple(label_map[None] for label_map in labels.maps), labels.constant)


@register_rule("mm", makes_products=True, masked_by=ZERO_FIRST)
def mm(trace: Trace, call: Call) -> ChannelLabels:
    """Multiply (N, K) by (K, M)."""
    return _matrix_product(trace, call, 0, None)


@register_rule("addmm", makes_products=True, masked_by=ZERO_SECOND)
def addmm(trace: Trace, call: Call) -> ChannelLabels:
    """Multiply (N, K) by (K, M) and add a bias."""
    return _matrix_product(trace, call, 1, call.args[0])


def _matrix_product(trace: Trace, call: Call, first: int, bias: Tensor | None) -> ChannelLabels:
    a, b = call.args[first], call.args[first + 1]
    labels_a, labels_b = trace.labels_of(a), trace.labels_of(b)
    maps, summed = contract(trace, _batched(labels_a), _batched(labels_b), ((1, *a.shape), (1, *b.shape)))
    trace.mask([label_map[0] for label_map in summed])
    out = tuple(label_map[0] for label_map in maps)
    filters = [label_map for label_map in labels_b.maps if varying(label_map) == [1]]
    rows = (filters[0][:1].expand(call.out.shape),) if labels_b.constant and len(filters) == 1 else ()
    if bias is not None:
        shape = tuple(call.out.shape)
        out = combine(trace, [(ChannelLabels(out), shape), (trace.labels_of(bias), tuple(bias.shape))], shape)
    return ChannelLabels(out, producer_rows=rows)


@register_rule("bmm", makes_products=True, masked_by=ZERO_FIRST)
def bmm(trace: Trace, call: Call) -> ChannelLabels:
    """Multiply (B, N, K) by (B, K, M)."""
    a, b = call.args
    weights = [label_map.unsqueeze(3) for label_map in trace.labels_of(a).stays]
    values = [label_map.unsqueeze(1) for label_map in trace.labels_of(b).maps]
    weighed_positions(trace, weights, values, (b.shape[0], 1, *b.shape[1:]))
    maps, summed = contract(trace, trace.labels_of(a), trace.labels_of(b), (a.shape, b.shape))
    trace.mask(summed)
    for label_map in summed:
        compensate_product(trace, a, b, along(label_map, 2))
    return ChannelLabels(maps, scores=bool(summed))


@register_rule("baddbmm", makes_products=True, masked_by=ZERO_SECOND)
def baddbmm(trace: Trace, call: Call) -> ChannelLabels:
    """Multiply (B, N, K) by (B, K, M) and add a term."""
    term, a, b = call.args[:3]
    maps, summed = contract(trace, trace.labels_of(a), trace.labels_of(b), (a.shape, b.shape))
    trace.mask(summed)
    for label_map in summed:
        compensate_product(trace, a, b, along(label_map, 2))
    shape = tuple(call.out.shape)
    product = ChannelLabels(maps, scores=bool(summed))
    maps = combine(trace, [(product, shape), (trace.labels_of(term), tuple(term.shape))], shape)
    return ChannelLabels(maps, scores=bool(summed))


@register_rule("_cdist_forward", "_euclidean_dist", makes_products=True, masked_by=PAIRS_OVER_KEPT)
def distances(trace: Trace, call: Call) -> ChannelLabels:
    """Compare vectors (..., P, M) with (..., R, M): their channels are the same; those of other dimensions stay."""
    along_last: list[list[Tensor]] = []
    for operand in call.args[:2]:
        vectors = []
        for label_map in trace.labels_of(operand).maps:
            if varying(label_map) == [label_map.dim() - 1]:
                vectors.append(along(label_map, -1))
            else:
                trace.pin(label_map, Reason.OVER_CHANNELS.because(operation="a table of distances"))
        along_last.append(vectors)
    first, second = along_last
    for p in first:
        for q in second:
            pair_labels(trace, p, q)
    for one, other in ((first, second), (second, first)):
        for vector in one if not other else ():
            trace.pin(vector, Reason.FIXED_WIDTH_MATRIX.because())
    if first and second:
        trace.mask([spread(vector, call.args[0].shape, call.args[0].dim() - 1) for vector in first])
    return ChannelLabels()
