"""What a trace notes down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from norton_plugin.reasons import Cause

if TYPE_CHECKING:
    from norton_plugin.channels.masking import Masking


@dataclass(frozen=True)
class Call:
    """One operation as it ran.

    Attributes:
        func: The operation, as PyTorch dispatches it.
        name: See ``operation_name``.
        args: Positional arguments.
        kwargs: Keyword arguments.
        out: What it returned.
    """

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """Return a positional or keyword argument."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)


@dataclass(frozen=True)
class FunctionCall:
    """The PyTorch function that the model's code called, such as ``reshape``; it runs one or more operations.

    Attributes:
        name: The function's ``__name__``.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What an operation must do in the masked model.

    Attributes:
        masking: How it runs there.
        maps: Label maps of the operand that is masked.
    """

    masking: Masking
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class HardCodedSize:
    """A plain integer that sized a dimension with channels: the code must be told its new value.

    Attributes:
        stack: Modules that were running, the innermost last.
        size: The integer.
        labels: Channels that it counts.
        whole: Channels of the whole of which it counts a part; the integer may have been computed from its size.
    """

    stack: tuple[nn.Module, ...]
    size: int
    labels: Tensor
    whole: Tensor | None = None


@dataclass(frozen=True)
class WidthConstraint:
    """Two lists of channels whose numbers the code computes from one another: they must stay in proportion.

    Attributes:
        source: (m,) labels of the width that the code read.
        target: (n,) labels of the dimension that it sized with it.
    """

    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class Rescale:
    """Rows of a layer whose outputs are multiplied by a power of a width that may change.

    Attributes:
        rows: Labels of the rows.
        width: Labels of the channels that the width counts.
        exponent: The power.
    """

    rows: Tensor
    width: Tensor
    exponent: float


@dataclass(frozen=True)
class ScaleAttribute:
    """An attribute of a module that holds a power of a width that may change.

    Attributes:
        module: The module.
        name: Of the attribute, a float.
        width: Labels of the channels that the width counts.
        exponent: The power.
    """

    module: nn.Module
    name: str
    width: Tensor
    exponent: float


@dataclass
class Notes:
    """All that one run of a model leaves behind, beside unions and pins.

    Attributes:
        steps: (name of the operation, how many of that name ran before) -> what it does in the masked model.
        hard_coded_sizes: Plain integers that sized dimensions with channels.
        width_constraints: Widths that must stay in proportion.
        rescales: Rows to be rescaled when a width changes.
        scale_attributes: Attributes to be renewed when a width changes.
        group_inputs: Grouped layer -> labels of its input channels.
        norm_inputs: Norm over the last dimension -> labels along it.
        whole_groups: Group norm -> whether it loses whole groups.
        training_steps: The same of a pass in training mode.
        ran: Modules that were called.
        read: Ids of the parameters that an operation was given.
        produced_output: Those among them that returned at least one number.
        selects: Whether an operation sorted or chose by value.
        rule_failures: Operation -> how its rule failed first.
    """

    steps: dict[tuple[str, int], Step] = field(default_factory=dict)
    hard_coded_sizes: list[HardCodedSize] = field(default_factory=list)
    width_constraints: list[WidthConstraint] = field(default_factory=list)
    rescales: list[Rescale] = field(default_factory=list)
    scale_attributes: list[ScaleAttribute] = field(default_factory=list)
    group_inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    norm_inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    whole_groups: dict[nn.Module, bool] = field(default_factory=dict)
    training_steps: dict[tuple[str, int], Step] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    ran: set[nn.Module] = field(default_factory=set)
    produced_output: set[nn.Module] = field(default_factory=set)
    selects: bool = False
    rule_failures: dict[str, Cause] = field(default_factory=dict)
