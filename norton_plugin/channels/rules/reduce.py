"""Operations over whole dimensions: sums, means, softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from norton_plugin.channels.label_maps import ChannelLabels, varying
from norton_plugin.channels.masking import AMONG_KEPT, NORM_OVER_KEPT, OVER_KEPT
from norton_plugin.channels.operations import declare, register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.elementwise import pointwise
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason


def _dims(call: Call, position: int = 1) -> list[int]:
    """Return the dimensions that a reduction runs over; all where none are given."""
    ndim = call.args[0].dim()
    dims = call.arg(position, "dim")
    if dims is None:
        return list(range(ndim))
    dims = [dims] if isinstance(dims, int) else list(dims)
    return [d % ndim for d in dims] or list(range(ndim))


def _over(trace: Trace, call: Call, dims: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the maps that vary along these dimensions, and the others."""
    consumed: list[Tensor] = []
    kept: list[Tensor] = []
    for label_map in trace.labels_of(call.args[0]).maps:
        (consumed if set(varying(label_map)) & set(dims) else kept).append(label_map)
    return consumed, kept


def _outputs(
    trace: Trace, call: Call, dims: Sequence[int], kept: Sequence[Tensor], *, keep_rows: bool = False
) -> list[ChannelLabels]:
    """Return the labels of the outputs, which have lost these dimensions or have size 1 along them."""
    x = call.args[0]
    outputs = call.out if isinstance(call.out, tuple) else [call.out]

    def reduced(label_map: Tensor) -> Tensor:
        for d in sorted(dims, reverse=True):
            label_map = label_map.narrow(d, 0, 1) if outputs[0].dim() == x.dim() else label_map.select(d, 0)
        return label_map

    rows = trace.labels_of(x).producer_rows if keep_rows else ()
    rows = () if any(set(varying(own)) & set(dims) for own in rows) else tuple(reduced(own) for own in rows)
    maps = tuple(reduced(label_map).expand(outputs[0].shape) for label_map in kept)
    return [ChannelLabels(maps, producer_rows=rows)] * len(outputs)


@register_rule("mean", "sum", masked_by=OVER_KEPT)
def mean(trace: Trace, call: Call) -> list[ChannelLabels]:
    """Sum over dimensions, in the masked model over the kept channels; outputs stay multiples of their rows."""
    consumed, kept = _over(trace, call, _dims(call))
    trace.mask(consumed)
    return _outputs(trace, call, _dims(call), kept, keep_rows=True)


@register_rule("var", "std", "var_mean", "std_mean", masked_by=OVER_KEPT)
def variance(trace: Trace, call: Call) -> list[ChannelLabels]:
    """Take statistics over dimensions, in the masked model over the kept channels."""
    consumed, kept = _over(trace, call, _dims(call))
    trace.mask(consumed)
    return _outputs(trace, call, _dims(call), kept)


@register_rule("linalg_vector_norm", "norm", masked_by=NORM_OVER_KEPT)
def vector_norm(trace: Trace, call: Call) -> list[ChannelLabels]:
    """Take the norm over dimensions, in the masked model over the kept channels."""
    dims = _dims(call, 2)
    consumed, kept = _over(trace, call, dims)
    trace.mask(consumed)
    return _outputs(trace, call, dims, kept)


@register_rule("amax", "max", masked_by=OVER_KEPT)
def largest(trace: Trace, call: Call) -> Any:
    """Take the largest value; over a dimension without channels outputs stay multiples of their rows."""
    return _extreme(trace, call, keep_rows=True)


@register_rule("amin", "min", masked_by=OVER_KEPT)
def smallest(trace: Trace, call: Call) -> Any:
    """Take the smallest value."""
    return _extreme(trace, call, keep_rows=False)


def _extreme(trace: Trace, call: Call, *, keep_rows: bool) -> Any:
    if call.func._overloadname in ("default", "other") and len(call.args) > 1 and call.name in ("max", "min"):
        return pointwise(trace, call)
    dims = _dims(call)
    consumed, kept = _over(trace, call, dims)
    if call.args[0].dim() > 3 and dims == [1]:
        # Attention to places (CBAM) takes the largest channel of a map. Where its number is used, all stay.
        trace.mask(consumed)
        for numbers in call.out[1:] if isinstance(call.out, tuple) else ():
            trace.number_channels(numbers, consumed)
    else:
        _pin(trace, call, consumed)
    return _outputs(trace, call, dims, kept, keep_rows=keep_rows)


def _pin(trace: Trace, call: Call, maps: Sequence[Tensor]) -> None:
    for label_map in maps:
        trace.pin(label_map, Reason.TAKEN_OVER_CHANNELS.because(operation=call.name.strip("_")))


@register_rule("logsumexp", "prod", "any", "all")
def reduce(trace: Trace, call: Call) -> list[ChannelLabels]:
    """Reduce dimensions by anything else: their channels must stay."""
    consumed, kept = _over(trace, call, _dims(call))
    _pin(trace, call, consumed)
    return _outputs(trace, call, _dims(call), kept)


register_rule("argmax", "argmin", selects=True)(reduce)


@register_rule("_softmax", "_log_softmax", "softmax", "_safe_softmax", masked_by=AMONG_KEPT)
def softmax(trace: Trace, call: Call) -> Any:
    """Normalise one dimension; its channels must stay, except in attention of channels to channels (XCiT).

    There, a removed channel gets no attention. The output still has the positions of channels that must stay.
    """
    dim = _single_dim(call)
    own = trace.labels_of(call.args[0]).maps
    crossed = any(varying(label_map) and dim not in varying(label_map) for label_map in own)
    maps = []
    stays = [label_map for label_map in own if dim in varying(label_map) and not crossed]
    _pin(trace, call, stays)
    for label_map in own:
        if dim in varying(label_map) and crossed:
            trace.mask([label_map])
        if not any(label_map is each for each in stays):
            maps.append(label_map)
    return _same_shape(call, maps, stays)


@register_rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
def along_dimension(trace: Trace, call: Call) -> Any:
    """Mix the positions of one dimension and keep the shape: channels along it must stay."""
    consumed, kept = _over(trace, call, [_single_dim(call)])
    _pin(trace, call, consumed)
    return _same_shape(call, kept)


register_rule("sort", "argsort", selects=True)(along_dimension)
# Their outputs have positions of other meaning: channels are not followed, but their outcome may jump.
declare("topk", "nonzero", "unique", "_unique2", "torchvision::nms", selects=True)


def _single_dim(call: Call) -> int:
    dim = call.arg(1, "dim", -1)
    return (dim if isinstance(dim, int) else -1) % call.args[0].dim()


def _same_shape(call: Call, maps: Sequence[Tensor], stays: Sequence[Tensor] = ()) -> Any:
    labels = ChannelLabels(tuple(maps), stays=tuple(stays))
    return [labels] * len(call.out) if isinstance(call.out, tuple) else labels
