"""Where the sizes come from that the code works with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from norton_plugin.channels.label_maps import along, core, varying
from norton_plugin.channels.operations import Number, declaration_of, number_in
from norton_plugin.channels.plain_widths import PlainWidths
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
        self._plain = PlainWidths()

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
                    _follow_numbers(self.trace, function, self._plain)
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
            if d not in widths:
                return value
            return Width.of(value, widths[d], self._used_as_value, on_plain=self._made_plain)

        if isinstance(out, int):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return wrap(dim % tensor.dim(), out)
        return torch.Size([wrap(d, value) for d, value in enumerate(out)])

    def _used_as_value(self, labels: Tensor) -> None:
        with self.tracer.paused():
            self.trace.pin(labels, Reason.WIDTH_AS_VALUE.because())

    def _made_plain(self, labels: Tensor, number: float) -> None:
        self._plain.add(self.trace.module, labels, number)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for labels in self._plain.lost():
            self._used_as_value(labels)


def _follow_numbers(trace: Trace, function: FunctionCall, plain: PlainWidths) -> None:
    """Note tensors that are multiplied by a power of a width; any other use of a width as a value pins it."""
    number = number_in(function.name)
    scales = number in (Number.FACTOR, Number.DIVISOR)
    tensor = next((a for a in function.args if isinstance(a, Tensor)), None)
    for entry in function.args:
        known = _power(entry, number)
        if known is None and scales and tensor is not None and type(entry) is float:
            known = plain.power(trace.module, entry)
        if known is None:
            continue
        labels, exponent = known
        if scales and tensor is not None and exponent is not None:
            compensate_tensor(trace, tensor, labels, exponent if number is Number.FACTOR else -exponent)
        else:
            trace.pin(labels, Reason.WIDTH_AS_VALUE.because())


def _power(entry: Any, number: Number) -> tuple[Tensor, float | None] | None:
    """Return the labels and the exponent of a power of a width, None of other arguments and of mere sizes."""
    if isinstance(entry, Scale):
        return entry.labels, entry.exponent
    if isinstance(entry, Width) and number is not Number.SIZE:
        return entry.labels, None if entry.offset else 1.0
    return None


def compensate_tensor(trace: Trace, tensor: Tensor, width: Tensor, exponent: float) -> None:
    """Note that a tensor is multiplied by a power of a width, to be compensated in the rows that computed it.

    Args:
        trace: Takes the note; where the rows are not known any more, the width is pinned.
        tensor: What is multiplied.
        width: Labels of the channels that the width counts.
        exponent: The power.
    """
    rows = trace.labels_of(tensor).producer_rows
    if rows:
        trace.compensate(torch.unique(torch.cat([core(own).reshape(-1) for own in rows])), width, exponent)
    else:
        trace.pin(width, Reason.WIDTH_AS_SCALE.because())
