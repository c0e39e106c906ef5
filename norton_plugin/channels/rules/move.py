"""Operations that move or repeat elements: the labels move with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from norton_plugin.channels.label_maps import ChannelLabels, along, compact, core, spread, varying
from norton_plugin.channels.operations import Number, register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.given import after_tensor, all_arguments
from norton_plugin.channels.trace import Trace
from norton_plugin.channels.widths import Width
from norton_plugin.reasons import Cause, Reason


def _mapped(trace: Trace, call: Call, function: Any) -> ChannelLabels:
    labels = trace.labels_of(call.args[0])
    rows = tuple(function(own) for own in labels.producer_rows)
    stays = tuple(function(label_map) for label_map in labels.stays)
    maps = tuple(function(label_map) for label_map in labels.maps)
    return ChannelLabels(maps, labels.constant, rows, stays=stays)


@register_rule(
    "permute", "transpose", "t", "unsqueeze", "squeeze", "movedim", "swapaxes", "alias", "detach", "lift_fresh"
)
def move(trace: Trace, call: Call) -> ChannelLabels:
    """Move dimensions."""
    return _mapped(trace, call, lambda label_map: call.func(label_map, *call.args[1:], **call.kwargs))


@register_rule(
    "clone", "contiguous", "_to_copy", "native_dropout", "dropout", "_conj", "positive", "fill", "zero", "to"
)
def same(trace: Trace, call: Call) -> Any:
    """Keep the labels: every element stays where it is."""
    labels = trace.labels_of(call.args[0])
    return [labels, labels] if isinstance(call.out, tuple) else labels


@register_rule("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "bernoulli")
def like(trace: Trace, call: Call) -> ChannelLabels:
    """Give a constant that is made to fit a tensor the channels of that tensor."""
    return trace.labels_of(call.args[0])


register_rule("full_like", number=Number.VALUE)(like)


_UNIFORM = ("zeros", "ones", "new_zeros", "new_ones")


@register_rule(
    *_UNIFORM,
    "empty",
    "rand",
    "randn",
    "new_empty",
    creates=True,
    sizes=dict.fromkeys(("zeros", "ones", "empty", "rand", "randn"), all_arguments)
    | dict.fromkeys(("new_zeros", "new_ones", "new_empty"), after_tensor),
)
def factory(trace: Trace, call: Call) -> ChannelLabels:
    """Give a constant whose sizes were read off a tensor the channels of that tensor.

    Zeros and ones of a width that an attribute holds fit any channels: they get labels of their own.
    """
    widths = {}
    for d, size in enumerate(trace.given_sizes(call.out.dim()) or []):
        if isinstance(size, Width) and len(size.labels) == call.out.shape[d]:
            widths[d] = size.labels
        elif _fits_any(call, size) and (labels := trace.counted(size)) is not None:
            widths[d] = labels
    if call.out.numel() == 0:
        trace.size_empty(call.out, widths)
        return ChannelLabels()
    return ChannelLabels(tuple(spread(labels, call.out.shape, d) for d, labels in widths.items()))


def _fits_any(call: Call, size: Any) -> bool:
    return type(size) is int and size > 1 and call.name in _UNIFORM and call.out.is_floating_point()


@register_rule("as_strided")
def as_strided(trace: Trace, call: Call) -> ChannelLabels | None:
    """Keep the labels where only strides change, as in the output of pooling to one pixel."""
    if call.out.shape != call.args[0].shape or call.arg(3, "storage_offset"):
        return None
    return trace.labels_of(call.args[0])


@register_rule("expand", sizes={"expand": after_tensor})
def expand(trace: Trace, call: Call) -> ChannelLabels:
    """Repeat elements."""
    labels = _mapped(trace, call, lambda label_map: label_map.expand(call.out.shape))
    for d, size in enumerate(trace.given_sizes(call.out.dim()) or []):
        touched = [label_map for label_map in labels.maps if d in varying(compact(label_map))]
        for label_map in touched:
            trace.relate_size(along(label_map, d), size)
        if not touched and isinstance(size, Width):
            trace.pin(size.labels, Reason.FOREIGN_SIZE.because())
    return labels


@register_rule("flip")
def flip(trace: Trace, call: Call) -> ChannelLabels:
    """Reverse the order, which commutes with removal."""
    return _mapped(trace, call, lambda lm: call.func(core(lm), *call.args[1:]).expand(lm.shape))


def fixed_along(trace: Trace, call: Call, dims: Sequence[int], why: Cause) -> list[Tensor]:
    """Pin the channels of all maps that vary along these dimensions; return the other maps."""
    kept = []
    for label_map in trace.labels_of(call.args[0]).maps:
        if set(varying(label_map)) & {d % label_map.dim() for d in dims}:
            trace.pin(label_map, why)
        else:
            kept.append(label_map)
    return kept


@register_rule("roll")
def roll(trace: Trace, call: Call) -> ChannelLabels:
    """Pin channels that are rotated by a fixed number of positions."""
    dims = call.arg(2, "dims", ()) or range(call.args[0].dim())
    cause = Reason.OVER_CHANNELS.because(operation="a rotation by a fixed number of places")
    return ChannelLabels(tuple(fixed_along(trace, call, dims, cause)))


@register_rule("constant_pad_nd", "pad")
def pad(trace: Trace, call: Call) -> ChannelLabels:
    """Add constants around the tensor: they belong to no channel."""
    return _mapped(trace, call, lambda label_map: _padded(label_map, call.args[1]))


def _padded(label_map: Tensor, widths: Sequence[int]) -> Tensor:
    live = set(varying(label_map))
    inner, outer = list(widths), []
    for position in range(0, len(widths), 2):
        dim = label_map.dim() - 1 - position // 2
        if dim not in live:
            # A label holds for all positions along this dimension, padding included: it disappears with the channel.
            outer.append((dim, widths[position] + widths[position + 1]))
            inner[position] = inner[position + 1] = 0
    shape = list(label_map.shape)
    small = torch.nn.functional.pad(core(label_map), inner)
    for dim, extra in outer:
        shape[dim] += extra
    for dim in live:
        shape[dim] = small.shape[dim]
    return small.expand(shape)
