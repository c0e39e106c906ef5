"""Scaled dot-product attention, whose scale is a power of the width of a head.

A module may have two paths: one calls PyTorch's function, which computes the scale from the width at hand, the other
multiplies queries and keys itself and takes the scale from an attribute. Whichever of the two the trace sees, the keys
are rescaled and the attribute is renewed, so that both are right after a cut.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from norton_plugin.channels.label_maps import along, core, varying
from norton_plugin.channels.operations import Number, declare
from norton_plugin.channels.provenance import compensate_tensor
from norton_plugin.channels.records import FunctionCall, ScaleAttribute
from norton_plugin.channels.rescaling import names_a_scale
from norton_plugin.channels.trace import Trace

_FUSED = "scaled_dot_product_attention"
_EXPONENT = -0.5


def _compensate_fused(trace: Trace, function: FunctionCall) -> None:
    """Note that keys are divided by the square root of the width of a head, unless a scale is given.

    Keys, because this product alone reads them; relative positions are often computed from the queries too.
    """
    args, kwargs = function.args, function.kwargs
    if kwargs.get("scale", args[6] if len(args) > 6 else None) is not None:
        return
    key = args[1] if len(args) > 1 else kwargs["key"]
    for label_map in trace.labels_of(key).maps:
        if key.dim() - 1 in varying(label_map):
            width = along(label_map, key.dim() - 1)
            compensate_tensor(trace, key, width, _EXPONENT)
            _note_attributes(trace, width)


def compensate_product(trace: Trace, query: Tensor, key: Tensor, width: Tensor) -> None:
    """Note the same where a module that has a fused path, too, multiplies queries and keys by itself.

    Args:
        trace: Takes the notes.
        query: The first factor.
        key: What is multiplied with the queries.
        width: Labels that the product sums over.
    """
    module = trace.module
    if module is None or not _has_fused_path(type(module)):
        return
    inside = trace.function is not None and trace.function.name == _FUSED
    if _is_rescaled(trace, query):
        return  # the code computes the scale from the width at hand, which is noted already
    if not inside and next(_attributes(module, len(width)), None) is not None:
        compensate_tensor(trace, key, width, _EXPONENT)
        _note_attributes(trace, width)


def _is_rescaled(trace: Trace, query: Tensor) -> bool:
    """Tell whether the rows that computed the queries are to be rescaled already."""
    rows = trace.labels_of(query).producer_rows
    rescales = trace.notes.rescales
    return any(bool(torch.isin(core(own), entry.rows).any()) for own in rows for entry in rescales)


def _note_attributes(trace: Trace, width: Tensor) -> None:
    if (module := trace.module) is not None:
        names = _attributes(module, len(width))
        trace.notes.scale_attributes += [ScaleAttribute(module, name, width.clone(), _EXPONENT) for name in names]


def _attributes(module: nn.Module, width: int) -> Iterator[str]:
    """Yield the attributes that hold the scale of a head of this width."""
    for name, value in vars(module).items():
        if type(value) is not float or not names_a_scale(name):
            continue
        if math.isclose(value, width**_EXPONENT, rel_tol=1e-6):
            yield name


def _has_fused_path(kind: type[nn.Module]) -> bool:
    """Tell whether a method of a class calls PyTorch's function."""
    for owner in kind.__mro__:
        if owner is nn.Module:
            return False
        for method in vars(owner).values():
            code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
            if code is not None and _FUSED in code.co_names:
                return True
    return False


# It runs as the products and the softmax that it consists of: those have the rules.
declare(_FUSED, number=Number.VALUE, before=_compensate_fused)
# Made from numbers alone: without channels, but the numbers are values.
declare("full", "tensor", number=Number.VALUE)
