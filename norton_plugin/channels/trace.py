"""What a trace knows so far, and all that a rule may ask and say: the interface between the tracer and the rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from norton_plugin.channels.calling_module import calling_module
from norton_plugin.channels.hard_coded_sizes import holds_width
from norton_plugin.channels.label_maps import ChannelLabels, compact, core, varying
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.channels.masking import Masking
from norton_plugin.channels.operations import Operation
from norton_plugin.channels.records import FunctionCall, HardCodedSize, Notes, Rescale, Step, WidthConstraint
from norton_plugin.channels.tensor_axes import AxisTable, TensorAxis
from norton_plugin.channels.widths import Width
from norton_plugin.reasons import Cause, Reason

# Labels that a map may store. Larger maps are given up (their channels stay), which bounds the memory.
MAX_CORE = 1 << 24


class Trace:
    """The channels of all tensors of one run.

    Args:
        axes: The model's parameters and their labels.
        table: Takes unions and pins.
    """

    def __init__(self, axes: AxisTable, table: LabelTable) -> None:
        self.axes = axes
        self.table = table
        self.notes = Notes()
        self.module_stack: list[nn.Module] = []
        self.function: FunctionCall | None = None
        self.operation = Operation("")
        self.position = ("", 0)
        # Modules whose code may run layers that the example does not run: name of such a layer. None: code around all.
        self.unsure: Mapping[nn.Module | None, str] = {}
        self._labels = WeakTensorKeyDictionary()
        self._numbered = WeakTensorKeyDictionary()
        self._sizes_of_empty = WeakTensorKeyDictionary()

    @property
    def module(self) -> nn.Module | None:
        """The innermost module that is running."""
        return self.module_stack[-1] if self.module_stack else None

    # -- labels of tensors ------------------------------------------------------------------------------------------

    def labels_of(self, tensor: Tensor) -> ChannelLabels:
        """Return the labels of a tensor; one that no operation of the trace made is a constant without channels."""
        found = self._labels.get(tensor)
        if found is None:
            found = self.axes.labels.get(tensor)
            if found is not None:
                self.notes.read.add(id(tensor))
        return ChannelLabels() if found is None else found

    def knows(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter or was made by an operation of the trace."""
        return tensor in self._labels or tensor in self.axes.labels

    def set_labels(self, tensor: Tensor, labels: ChannelLabels) -> None:
        """Give a tensor its labels; maps that hold a single label are dropped and the label is pinned."""
        maps = []
        for label_map in labels.maps:
            label_map = compact(label_map)
            if not varying(label_map):
                if label_map.numel():
                    self.table.pin(core(label_map), Reason.BY_POSITION.because(which="one"))
            elif core(label_map).numel() > MAX_CORE:
                self.table.pin(core(label_map), Reason.TOO_LARGE.because())
            else:
                maps.append(label_map)
        self._labels[tensor] = labels._replace(maps=tuple(maps))

    # -- what channels have to do with one another ------------------------------------------------------------------

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Note that the labels of two maps or vectors are the same channels, element by element."""
        self.table.unite(core(a), core(b))

    def pin(self, labels: Tensor, reason: Cause) -> None:
        """Note that the channels of a map or vector must stay."""
        self.table.pin(core(labels), reason)

    def pin_places(self, tensor: Tensor) -> None:
        """Pin whatever computed a tensor of places: its numbers say where another tensor is read."""
        labels = self.labels_of(tensor)
        for label_map in (*labels.maps, *labels.stays):
            self.pin(label_map, Reason.POSITIONS_OR_HEADS.because())

    def pin_visible(self, tensors: Iterable[Any]) -> None:
        """Pin the channels of tensors that the running module's code sees, where it may hand them to an idle layer."""
        layer = self.unsure.get(self.module)
        if layer is None:
            return
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                for label_map in self.labels_of(tensor).maps:
                    self.pin(label_map, Reason.MAY_BE_READ.because(layer=layer))

    def set_role(self, maps: Sequence[Tensor], role: str) -> None:
        """Note what the dimension of a parameter is to the operation that uses it.

        Args:
            maps: Label maps of the parameter.
            role: ``"out"``, ``"in"`` or ``"both"``.
        """
        for label_map in maps:
            for axis in self.axes_in(label_map):
                if {axis.role, role} == {"in", "out"}:
                    # Two layers share the weight, and one of them uses it transposed.
                    axis.role = "out" if axis.numbers_filters else "in"
                else:
                    axis.role = role

    def axes_in(self, labels: Tensor) -> list[TensorAxis]:
        """Return the tensor axes that the labels of a map or vector belong to."""
        flat = core(labels).reshape(-1)
        flat = flat[flat != 0]
        if not flat.numel():
            return []
        return [self.axes.axes[i] for i in torch.unique(self.axes.axis_of(flat)).tolist()]

    # -- the masked model -------------------------------------------------------------------------------------------

    def mask(self, maps: Sequence[Tensor], by: Masking | None = None) -> None:
        """Note how the current operation runs in the masked model.

        Args:
            maps: Label maps of the operand that is masked; nothing is noted where there are none.
            by: One of those that the operation declares (``masked_by``); the first by default.

        Raises:
            ValueError: The operation does not declare it.
        """
        declared = self.operation.masked_by
        if not declared or (by is not None and by not in declared):
            raise ValueError(f"{self.operation.name} does not declare this among masked_by")
        if maps:
            self.notes.steps[self.position] = Step(declared[0] if by is None else by, tuple(maps))

    # -- sizes ------------------------------------------------------------------------------------------------------

    def given_sizes(self, count: int | None = None) -> list[Any] | None:
        """Return the sizes that the code gave to the function that runs the current operation.

        Args:
            count: How many are expected.

        Returns:
            None where the function was given none, or not as many.
        """
        if self.function is None or self.function.name not in self.operation.sizes:
            return None
        given = self.operation.sizes[self.function.name](self.function)
        return None if given is None or count not in (None, len(given)) else list(given)

    def relate_size(self, labels: Tensor, given: Any, whole: Tensor | None = None) -> None:
        """Relate the channels along a dimension to the integer that the code gave for its size.

        Args:
            labels: (n,) labels along the dimension.
            given: The integer; anything else says nothing.
            whole: Labels of the dimension of which it is a part.
        """
        if isinstance(given, Width):
            if given.offset:
                self.pin(labels, Reason.COMPUTED_WIDTH.because())
                self.pin(given.labels, Reason.COMPUTED_WIDTH.because())
            else:
                self.notes.width_constraints.append(WidthConstraint(given.labels, labels.clone()))
        elif type(given) is int and given > 0:
            stack = tuple(self.module_stack)
            self.notes.hard_coded_sizes.append(HardCodedSize(stack, given, labels.clone(), whole))

    def counted(self, size: int) -> Tensor | None:
        """Return labels for a dimension of a new constant, sized by an attribute that holds a width; None by another.

        Args:
            size: The plain integer that the code gave.
        """
        module = calling_module(self.axes.modules)
        if module is None:
            return None
        stack = (*(entry for entry in self.module_stack if entry is not module), module)
        if not holds_width(stack, size):
            return None
        labels = self.axes.counted(module, size)
        self.notes.hard_coded_sizes.append(HardCodedSize(stack, size, labels.clone()))
        return labels

    def size_empty(self, tensor: Tensor, sizes: Mapping[int, Tensor]) -> None:
        """Note whose channels the sizes of an empty tensor count: it has no element that could carry their labels.

        Args:
            tensor: Without elements.
            sizes: Dimension -> labels along it.
        """
        self._sizes_of_empty[tensor] = dict(sizes)

    def sizes_of_empty(self, tensor: Tensor) -> dict[int, Tensor]:
        """Return what ``size_empty`` noted of a tensor."""
        return self._sizes_of_empty.get(tensor, {})

    def compensate(self, rows: Tensor, width: Tensor, exponent: float) -> None:
        """Note that the outputs of rows are multiplied by a power of a width.

        Where the width changes, pruning multiplies the rows by the inverse of that change.

        Args:
            rows: Labels of the rows.
            width: Labels of the channels that the width counts.
            exponent: The power.
        """
        self.notes.rescales.append(Rescale(rows, width, exponent))

    # -- positions by number ----------------------------------------------------------------------------------------

    def number_channels(self, tensor: Tensor, maps: Sequence[Tensor]) -> None:
        """Note that a tensor holds positions of channels as numbers: where they are used, those channels stay."""
        self._numbered[tensor] = tuple(maps)

    def pin_numbered(self, tensors: Sequence[Tensor]) -> None:
        """Pin the channels whose positions some of these tensors hold."""
        for tensor in tensors if len(self._numbered) else ():
            for label_map in self._numbered.get(tensor, ()):
                self.pin(label_map, Reason.BY_NUMBER.because())
