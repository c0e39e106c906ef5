"""Integer attributes of modules that the code computes with: they are more than sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from norton_plugin.channels.hard_coded_sizes import Attribute
from norton_plugin.channels.operations import Number, number_in
from norton_plugin.modules.snapshot import Snapshot


class _Number(float):
    """A value computed from an attribute."""

    attribute: Attribute
    used: Callable[[Attribute], None]


class _Counted(int):
    """The value of an attribute, which remembers where it is from."""

    attribute: Attribute
    used: Callable[[Attribute], None]

    def __float__(self) -> float:
        self.used(self.attribute)
        return float(int(self))

    def __reduce__(self) -> Any:
        return int, (int(self),)

    __hash__ = int.__hash__


def _marked(value: Any, attribute: Attribute, used: Callable[[Attribute], None]) -> Any:
    """Return a number that remembers the attribute it was computed from."""
    kind = {int: _Counted, float: _Number}.get(type(value))
    if kind is None:
        return value
    marked = kind(value)
    marked.attribute, marked.used = attribute, used
    return marked


def _arithmetic(kind: type, name: str) -> None:
    operation = getattr(operator, name)
    plain = int.__int__ if issubclass(kind, int) else float.__float__

    def forward(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented  # a tensor: it sees the number then
        return _marked(operation(plain(self), other), self.attribute, self.used)

    def reflected(self: Any, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        return _marked(operation(other, plain(self)), self.attribute, self.used)

    setattr(kind, f"__{name}__", forward)
    setattr(kind, f"__r{name}__", reflected)


for _kind in (_Counted, _Number):
    for _name in ("add", "sub", "mul", "floordiv", "truediv", "pow"):
        _arithmetic(_kind, _name)


class _Watch(TorchFunctionMode):
    """Note attributes that are multiplied with tensors, and the like."""

    def __init__(self, used: Callable[[Attribute], None]) -> None:
        super().__init__()
        self.used = used

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arithmetic = number_in(getattr(func, "__name__", "")) is not Number.SIZE
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, _Number) or (arithmetic and isinstance(leaf, _Counted)):
                self.used(leaf.attribute)
        return func(*args, **kwargs)


def used_as_values(model: nn.Module, attributes: Iterable[Attribute], run: Callable[[], Any]) -> set[Attribute]:
    """Find the attributes that enter what a model computes, beyond the shapes of its tensors.

    Args:
        model: Changed while this runs; as before when it returns.
        attributes: Integers, or lists of them.
        run: Runs the model once.

    Returns:
        Those attributes; none where the model does not run while they are watched.
    """
    found: set[Attribute] = set()
    before = Snapshot(model.modules())
    try:
        for module, name in attributes:
            value = vars(module)[name]
            if type(value) is int:
                vars(module)[name] = _marked(value, (module, name), found.add)
            else:
                vars(module)[name] = type(value)(_marked(entry, (module, name), found.add) for entry in value)
        with _Watch(found.add):
            run()
    except Exception:
        return set()
    finally:
        before.restore_()
    return found
