"""Deformable convolutions: each tap of the kernel reads the map at a place that other channels say."""

from __future__ import annotations

from torch import Tensor

from norton_plugin.channels.label_maps import ChannelLabels, along, held_constant, varying
from norton_plugin.channels.masking import ZERO_FIRST
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.convolution import filtered, weight_vectors
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason


@register_rule("torchvision::deform_conv2d", makes_products=True, masked_by=ZERO_FIRST)
def deformable(trace: Trace, call: Call) -> ChannelLabels:
    """Follow the filters as those of a convolution; offsets and modulation are numbers of places, and stay.

    Where runs of channels have offsets of their own, each run loses the same ones.
    """
    x, weight, offset, mask, bias = call.args[:5]
    groups, offset_groups = int(call.args[11]), int(call.args[12])
    trace.pin_places(offset)
    trace.pin_places(mask)
    inputs = []
    for label_map in trace.labels_of(x).maps:
        if varying(label_map) == [1]:
            inputs.append(_alike(trace, along(label_map, 1), offset_groups))
        else:
            trace.pin(label_map, Reason.OVER_CHANNELS.because(operation="a deformable convolution"))
    return filtered(trace, call, (inputs, *weight_vectors(trace, weight, False)), bias=bias, groups=groups)


def _alike(trace: Trace, vector: Tensor, runs: int) -> Tensor:
    """Unite the channels of equal runs, position by position."""
    if runs > 1:
        grid = vector.view(runs, -1)
        trace.unite(grid, held_constant(grid, [0]))
    return vector
