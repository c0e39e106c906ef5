"""How to read the sizes that code gives to PyTorch's functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from norton_plugin.channels.records import FunctionCall


def after_tensor(function: FunctionCall) -> list[int] | None:
    """Read ``x.view(2, -1)``, ``x.reshape((2, -1))`` and the like: all arguments but the first."""
    return _flat(function.args[1:], function.kwargs)


def all_arguments(function: FunctionCall) -> list[int] | None:
    """Read ``torch.zeros(2, 3)`` and the like: all arguments."""
    return _flat(function.args, function.kwargs)


def _flat(arguments: Sequence[Any], kwargs: dict[str, Any]) -> list[int] | None:
    flat: list[Any] = []
    for entry in (*arguments, *(kwargs[key] for key in ("shape", "size") if key in kwargs)):
        flat += list(entry) if isinstance(entry, tuple | list) else [entry]
    return flat if all(isinstance(value, int) for value in flat) else None


def unflattened(function: FunctionCall) -> list[int | None]:
    """Read ``x.unflatten(dim, sizes)``; None for the dimensions that stay."""
    args, kwargs = function.args, function.kwargs
    tensor, dim, sizes = args[0], args[1] if len(args) > 1 else kwargs["dim"], args[-1]
    dim %= tensor.dim()
    return [None] * dim + list(kwargs.get("sizes", sizes)) + [None] * (tensor.dim() - 1 - dim)


def part_sizes(function: FunctionCall) -> list[Any]:
    """Read ``x.split(8)`` or ``x.split([4, 12])``: one size for all parts, or one for each."""
    args = function.args
    sizes = args[1] if len(args) > 1 else next(iter(function.kwargs.values()), None)
    return list(sizes) if isinstance(sizes, tuple | list) else [sizes]


def slice_bounds(function: FunctionCall) -> list[int]:
    """Read ``x[:, 4:12]``: the starts and stops of all slices."""
    entries = function.args[1] if len(function.args) > 1 else ()
    slices = [e for e in (entries if isinstance(entries, tuple) else (entries,)) if isinstance(e, slice)]
    return [value for entry in slices for value in (entry.start, entry.stop) if isinstance(value, int)]


def convolution_groups(function: FunctionCall) -> list[Any]:
    """Read the ``groups`` of ``torch.nn.functional.conv2d`` and its like."""
    return [function.kwargs.get("groups", function.args[6] if len(function.args) > 6 else None)]
