"""Where the sizes come from that the code works with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from norton_plugin.channels.label_maps import along, core, varying
from norton_plugin.channels.operations import Number, declaration_of, number_in
from norton_plugin.channels.records import FunctionCall
from norton_plugin.channels.trace import Trace
from norton_plugin.channels.tracer import Tracer
from norton_plugin.channels.widths import Scale, Width
from norton_plugin.reasons import Reason

_SHAPE: Any = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


class SizeProvenance(TorchFunctionMode):
    """Make ``x.shape`` and ``x.size()`` return integers that remember their channels, and note each function call.

    Args:
        tracer: Its trace knows the labels of tensors.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.trace = tracer.trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == _SHAPE or name == "size":
            return self._size(func, args, kwargs)
        function = FunctionCall(name, args, kwargs)
        before, self.trace.function = self.trace.function, function
        try:
            with self.tracer.paused():
                operation = declaration_of(name)
                if operation is not None and operation.before is not None:
                    operation.before(self.trace, function)
                else:
                    _follow_numbers(self.trace, function)
            return func(*args, **kwargs)
        finally:
            self.trace.function = before

    def _size(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        tensor = args[0]
        maps = self.trace.labels_of(tensor).maps
        if not maps:
            return out
        widths = {}
        with self.tracer.paused():
            for label_map in maps:
                for d in varying(label_map):
                    widths[d] = along(label_map, d)

        def wrap(d: int, value: int) -> int:
            return Width.of(value, widths[d], self._used_as_value) if d in widths else value

        if isinstance(out, int):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return wrap(dim % tensor.dim(), out)
        return torch.Size([wrap(d, value) for d, value in enumerate(out)])

    def _used_as_value(self, labels: Tensor) -> None:
        with self.tracer.paused():
            self.trace.pin(labels, Reason.WIDTH_AS_VALUE.because())


def _follow_numbers(trace: Trace, function: FunctionCall) -> None:
    """Note tensors that are multiplied by a power of a width; any other use of a width as a value pins it."""
    number = number_in(function.name)
    for entry in function.args:
        if not isinstance(entry, Scale) and not (isinstance(entry, Width) and number is not Number.SIZE):
            continue
        tensor = next((a for a in function.args if isinstance(a, Tensor)), None)
        exponent = entry.exponent if isinstance(entry, Scale) else 1.0
        whole = isinstance(entry, Scale) or not entry.offset
        if whole and tensor is not None and number is Number.FACTOR:
            compensate_tensor(trace, tensor, entry.labels, exponent)
        elif whole and tensor is not None and number is Number.DIVISOR:
            compensate_tensor(trace, tensor, entry.labels, -exponent)
        else:
            trace.pin(entry.labels, Reason.WIDTH_AS_VALUE.because())


def compensate_tensor(trace: Trace, tensor: Tensor, width: Tensor, exponent: float) -> None:
    """Note that a tensor is multiplied by a power of a width, to be compensated in the rows that computed it.

    Args:
        trace: Takes the note; where the rows are not known any more, the width is pinned.
        tensor: What is multiplied.
        width: Labels of the channels that the width counts.
        exponent: The power.
    """
    rows = trace.labels_of(tensor).producer_rows
    if rows is None:
        trace.pin(width, Reason.WIDTH_AS_SCALE.because())
    else:
        trace.compensate(torch.unique(core(rows)), width, exponent)
