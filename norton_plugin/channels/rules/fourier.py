"""Fourier transforms, and complex numbers as pairs."""

from __future__ import annotations

from norton_plugin.channels.label_maps import ChannelLabels, core
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.move import fixed_along
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason


@register_rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def transform(trace: Trace, call: Call) -> ChannelLabels:
    """Transform some dimensions, whose sizes may change: channels along them stay, others follow."""
    kept = fixed_along(trace, call, call.args[1], Reason.OVER_CHANNELS.because(operation="a Fourier transform"))
    return ChannelLabels(tuple(core(label_map).expand(call.out.shape) for label_map in kept))


@register_rule("view_as_real")
def pairs(trace: Trace, call: Call) -> ChannelLabels:
    """Append the dimension of real and imaginary parts."""
    maps = trace.labels_of(call.args[0]).maps
    return ChannelLabels(tuple(core(label_map).unsqueeze(-1).expand(call.out.shape) for label_map in maps))


@register_rule("view_as_complex")
def numbers(trace: Trace, call: Call) -> ChannelLabels:
    """Take the last dimension for real and imaginary parts: it has no channels."""
    kept = fixed_along(trace, call, [-1], Reason.BY_POSITION.because(which="some"))
    return ChannelLabels(tuple(label_map.select(-1, 0) for label_map in kept))
