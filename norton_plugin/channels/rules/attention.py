"""Scaled dot-product attention, whose scale is computed from the width of a head."""

from __future__ import annotations

from norton_plugin.channels.label_maps import along, varying
from norton_plugin.channels.operations import Number, declare
from norton_plugin.channels.provenance import compensate_tensor
from norton_plugin.channels.records import FunctionCall
from norton_plugin.channels.trace import Trace


def _compensate_scale(trace: Trace, function: FunctionCall) -> None:
    """Note that keys are divided by the square root of the width of a head, unless a scale is given.

    Keys, because this product alone reads them; relative positions are often computed from the queries too.
    """
    args, kwargs = function.args, function.kwargs
    if kwargs.get("scale", args[6] if len(args) > 6 else None) is not None:
        return
    key = args[1] if len(args) > 1 else kwargs["key"]
    for label_map in trace.labels_of(key).maps:
        if key.dim() - 1 in varying(label_map):
            compensate_tensor(trace, key, along(label_map, key.dim() - 1), -0.5)


# It runs as the products and the softmax that it consists of: those have the rules.
declare("scaled_dot_product_attention", number=Number.VALUE, before=_compensate_scale)
# Made from numbers alone: without channels, but the numbers are values.
declare("full", "tensor", number=Number.VALUE)
