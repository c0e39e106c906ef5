"""Where the sizes that the code works with come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from norton_plugin.channels.attributes import ARITHMETIC
from norton_plugin.channels.label_maps import along, core, varying
from norton_plugin.channels.records import Rescale
from norton_plugin.channels.tracer import Tracer
from norton_plugin.channels.widths import Scale, Width
from norton_plugin.reasons import Reason

_DIVISIONS = ("div", "__truediv__", "div_", "__itruediv__")
_SHAPE: Any = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


class SizeProvenance(TorchFunctionMode):
    """Makes ``x.shape`` and ``x.size()`` return integers that remember their channels, and notes each call.

    Args:
        tracer: Knows the shadows.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func == _SHAPE or name == "size":
            return self._size(func, args, kwargs)
        before, self.tracer.call = self.tracer.call, (name, args, kwargs)
        try:
            with self.tracer.paused():
                self._scales(name, args, kwargs)
            return func(*args, **kwargs)
        finally:
            self.tracer.call = before

    def _size(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        tensor = args[0]
        planes = self.tracer.shadow(tensor).planes
        if not planes:
            return out
        widths = {}
        with self.tracer.paused():
            for plane in planes:
                for d in varying(plane):
                    widths[d] = along(plane, d)

        def wrap(d: int, value: int) -> int:
            return Width.of(value, widths[d], self._used_as_value) if d in widths else value

        if isinstance(out, int):
            dim = args[1] if len(args) > 1 else kwargs["dim"]
            return wrap(dim % tensor.dim(), out)
        return torch.Size([wrap(d, value) for d, value in enumerate(out)])

    def _used_as_value(self, labels: Tensor) -> None:
        with self.tracer.paused():
            self.tracer.pin(labels, Reason.WIDTH_AS_VALUE.because())

    def _scales(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes tensors that a power of a width multiplies; it is made good for in the rows that made them."""
        if name == "scaled_dot_product_attention":
            if kwargs.get("scale", args[6] if len(args) > 6 else None) is None:
                # Keys are read by this product alone; relative positions are often computed from the queries too.
                key = args[1] if len(args) > 1 else kwargs["key"]
                for plane in self.tracer.shadow(key).planes:
                    if key.dim() - 1 in varying(plane):
                        self._rescale(key, along(plane, key.dim() - 1), -0.5)
            return
        for position, entry in enumerate(args):
            if not isinstance(entry, Scale) and not (isinstance(entry, Width) and name in ARITHMETIC):
                continue
            tensor = next((a for a in args if isinstance(a, Tensor)), None)
            exponent = entry.exponent if isinstance(entry, Scale) else 1.0
            whole = isinstance(entry, Scale) or not entry.offset
            if whole and tensor is not None and name in ("mul", "__mul__", "__rmul__", "mul_", "__imul__"):
                self._rescale(tensor, entry.labels, exponent)
            elif whole and tensor is not None and position == 1 and name in _DIVISIONS:
                self._rescale(tensor, entry.labels, -exponent)
            else:
                self.tracer.pin(entry.labels, Reason.WIDTH_AS_VALUE.because())

    def _rescale(self, tensor: Tensor, width: Tensor, exponent: float) -> None:
        rows = self.tracer.shadow(tensor).rows
        if rows is None:
            self.tracer.pin(width, Reason.WIDTH_AS_SCALE.because())
        else:
            self.tracer.rescales.append(Rescale(torch.unique(core(rows)), width, exponent))


def given_sizes(tracer: Tracer, ndim: int) -> list[Any] | None:
    """The integers that the running code gave for the sizes of a reshape, or None where it gave none."""
    if tracer.call is None:
        return None
    name, args, kwargs = tracer.call
    if name == "unflatten":
        tensor, dim, sizes = args[0], args[1] if len(args) > 1 else kwargs["dim"], args[-1]
        dim %= tensor.dim()
        return [None] * dim + list(kwargs.get("sizes", sizes)) + [None] * (tensor.dim() - 1 - dim)
    if name not in ("view", "reshape", "expand", "zeros", "ones", "empty", "rand", "randn", "new_zeros", "new_ones"):
        return None
    flat: list[Any] = []
    positional = args if name in ("zeros", "ones", "empty", "rand", "randn") else args[1:]
    for entry in (*positional, *(kwargs[k] for k in ("shape", "size") if k in kwargs)):
        flat += list(entry) if isinstance(entry, tuple | list) else [entry]
    return flat if len(flat) == ndim and all(isinstance(v, int) for v in flat) else None
