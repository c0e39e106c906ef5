"""What the graph has to know of an operation: all of it is said in one place, by ``register_rule``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from norton_plugin.channels.masking import Masking
    from norton_plugin.channels.records import Call, FunctionCall
    from norton_plugin.channels.trace import Trace

Rule = Callable[["Trace", "Call"], Any]
AnyRule = TypeVar("AnyRule", bound=Rule)
SizeReader = Callable[["FunctionCall"], Sequence[Any] | None]


class Number(Enum):
    """What a plain number among the arguments of an operation is."""

    SIZE = "a size, a position or a count: it enters no computed value"
    VALUE = "it enters the computed values"
    FACTOR = "it multiplies a tensor"
    DIVISOR = "it divides a tensor"


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: See ``operation_name``: ``"relu"`` in ``aten``, ``"library::name"`` elsewhere.
        rule: ``(trace, call) -> labels``: the channels of its outputs, as one ``ChannelLabels`` or a list of them.
            None, or a rule that returns None, means that channels cannot be followed through it: they stay.
        masked_by: How it runs in the masked model; the first is what ``trace.mask`` notes by default.
        makes_products: Whether its outputs are sums of products of its inputs: what was said of attention scores
            ends there.
        selects: Whether its outcome jumps when two values change places.
        creates: Whether it makes a tensor of given sizes, to be followed whatever its operands are.
        sizes: Name of a PyTorch function that runs it -> how to read the sizes that the code gave to that function.
        number: What a plain number among its arguments is.
        before: ``(trace, function_call) -> None``: runs before a PyTorch function of this name, whatever operations
            that function consists of.
    """

    name: str
    rule: Rule | None = None
    masked_by: tuple[Masking, ...] = ()
    makes_products: bool = False
    selects: bool = False
    creates: bool = False
    sizes: Mapping[str, SizeReader] = field(default_factory=dict)
    number: Number = Number.SIZE
    before: Callable[[Trace, FunctionCall], None] | None = None


_OPERATIONS: dict[str, Operation] = {}
# Name of a PyTorch function or method -> what a plain number among its arguments is.
_NUMBERS: dict[str, Number] = {}


def declare(
    *names: str,
    rule: Rule | None = None,
    masked_by: Masking | tuple[Masking, ...] = (),
    makes_products: bool = False,
    selects: bool = False,
    creates: bool = False,
    sizes: Mapping[str, SizeReader] | None = None,
    number: Number = Number.SIZE,
    before: Callable[[Trace, FunctionCall], None] | None = None,
    replace: bool = False,
) -> None:
    """Declare operations; see ``Operation`` for what each argument says.

    Args:
        names: Of the operations, see ``operation_name``.
        rule: See ``Operation``.
        masked_by: See ``Operation``.
        makes_products: See ``Operation``.
        selects: See ``Operation``.
        creates: See ``Operation``.
        sizes: See ``Operation``.
        number: See ``Operation``.
        before: See ``Operation``.
        replace: Replace what is declared of the same names.

    Raises:
        ValueError: An operation is declared already, and ``replace`` is not set; nothing is declared then.
    """
    for name in names:
        if name in _OPERATIONS and not replace:
            raise ValueError(
                f"{name} has the rule {_described(_OPERATIONS[name].rule)} already; {_described(rule)} must not "
                "replace it: pass replace=True if it shall"
            )
    masks = masked_by if isinstance(masked_by, tuple) else (masked_by,)
    for name in names:
        facts = makes_products, selects, creates, sizes or {}, number, before
        _OPERATIONS[name] = Operation(name, rule, masks, *facts)
        _NUMBERS.update(_spellings(name, number))


def register_rule(*names: str, **declaration: Any) -> Callable[[AnyRule], AnyRule]:
    """Register the rule of operations, as a decorator.

    An element-wise operation of one's own library keeps every element where it is::

        @register_rule("mylib::hard_gate")
        def hard_gate(trace, call):
            return ChannelLabels(trace.labels_of(call.args[0]).maps)

    Args:
        names: Of the operations, see ``operation_name``.
        declaration: All else that there is to say of them, see ``declare``.

    Returns:
        A decorator that leaves the rule as it is.

    Raises:
        ValueError: An operation is declared already, and ``replace`` is not set.
    """

    def register(function: AnyRule) -> AnyRule:
        declare(*names, rule=function, **declaration)
        return function

    return register


def _described(rule: Rule | None) -> str:
    return "(none)" if rule is None else f"{rule.__module__}.{getattr(rule, '__qualname__', rule)}"


def _spellings(name: str, number: Number) -> dict[str, Number]:
    """Return the names of the functions and methods by which Python code runs an arithmetic operation."""
    if number is Number.SIZE:
        return {}
    names: dict[str, Number] = dict.fromkeys((name, f"{name}_", f"__{name}__", f"__i{name}__"), number)
    names[f"__r{name}__"] = Number.VALUE if number is Number.DIVISOR else number
    return names


def operation(func: Any, name: str) -> Operation:
    """Return what is declared of an operation; pointwise ones without a declaration have one in common.

    Args:
        func: As PyTorch dispatches it.
        name: See ``operation_name``.
    """
    found = _OPERATIONS.get(name)
    if found is None and torch.Tag.pointwise in func.tags:
        found = _OPERATIONS["pointwise"]
    return Operation(name) if found is None else found


def number_in(function: str) -> Number:
    """Return what a plain number among the arguments of a PyTorch function is."""
    return _NUMBERS.get(function, Number.SIZE)


def declaration_of(function: str) -> Operation | None:
    """Return what is declared of an operation with the name of a PyTorch function."""
    return _OPERATIONS.get(function)
