"""What a trace notes down, and the register of rules it goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Rule = Callable[[Any, "Call"], Any]
RULES: dict[str, Rule] = {}


def operation_name(func: Any) -> str:
    """An aten operation without its overload and the underscore of its in-place form."""
    return str(func._overloadpacket.__name__).rstrip("_")


def taken_apart(mode: TorchDispatchMode, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation run as those it is made of, under the mode; NotImplemented where it is elementary.

    In inference mode composite operations arrive whole; elsewhere they have been taken apart by now.
    """
    if not torch.is_inference_mode_enabled():
        return NotImplemented
    with mode:
        return func.decompose(*args, **kwargs)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of some aten operations, named without overload and in-place underscore.

    Raises:
        ValueError: An operation has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in sorted(RULES.keys() & names):
            known = f"{RULES[name].__module__}.{RULES[name].__qualname__}"
            raise ValueError(f"{name} has the rule {known} already; {function.__qualname__} must not replace it")
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass(frozen=True)
class Call:
    """One operation as it ran."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """A positional or keyword argument."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Step:
    """What an operation must do in the masked model.

    Attributes:
        kind: ``"zero"``: removed elements of the first operand count as zero. ``"reduce"``, ``"layer_norm"``,
            ``"group_norm"``, ``"batch_norm"``: statistics are taken over the kept positions. ``"kept"``: the operation
            sees the kept positions alone.
        planes: Planes of the first operand.
    """

    kind: str
    planes: tuple[Tensor, ...]


@dataclass(frozen=True)
class StaleSize:
    """A literal integer that sized a labelled dimension: the code must be told its new value.

    Attributes:
        stack: Modules that were running, the innermost last.
        size: The integer.
        labels: Channels it counts.
        whole: Channels of the whole of which it counts a part; the integer may have been computed from its size.
    """

    stack: tuple[nn.Module, ...]
    size: int
    labels: Tensor
    whole: Tensor | None = None


@dataclass(frozen=True)
class Rescale:
    """Rows of layers whose outputs are multiplied by a power of a width that may change.

    Attributes:
        rows: Labels of the rows.
        width: Channels of the width.
        exponent: The power.
    """

    rows: Tensor
    width: Tensor
    exponent: float
