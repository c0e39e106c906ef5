"""The channel groups of a model, found by following labels through one run instead of guessing from shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.channels import expert_layers as expert_layers  # importing them registers them
from norton_plugin.channels import generated_kernels as generated_kernels
from norton_plugin.channels import layer_types as layer_types
from norton_plugin.channels import reassembly as reassembly
from norton_plugin.channels import rules as rules
from norton_plugin.channels.attributes import used_as_values
from norton_plugin.channels.conditions import followable
from norton_plugin.channels.cutting import cut_
from norton_plugin.channels.deadline import Deadline
from norton_plugin.channels.grouping import LabelledGroup, labelled_groups
from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.channels.hard_coded_sizes import Attribute, shared_sizes, sources_of, update_sizes_
from norton_plugin.channels.idle import pin_idle
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.channels.layers import CurrentSizes, dense_weights, layer_type
from norton_plugin.channels.masked_replay import MaskedReplay
from norton_plugin.channels.passes import Passes, follow_idle, pin_outputs
from norton_plugin.channels.rescaling import renew_scales_, rescale_, rescale_factors
from norton_plugin.channels.tensor_axes import AxisTable
from norton_plugin.channels.trace import Trace
from norton_plugin.channels.unconsumed import pin_unconsumed
from norton_plugin.channels.width_constraints import solve
from norton_plugin.errors import SurgeryError, TracingError
from norton_plugin.modules.running import ForwardFunction, run_model
from norton_plugin.reasons import Cause, Reason


class ChannelGraph:
    """Which channels of a model belong together.

    Example::

        graph = ChannelGraph(model, example)
        groups = graph.groups()
        with graph.masked([("stem", [0, 3])]):
            expected = model(example)
        graph.prune("stem", [0, 3])

    Args:
        model: Run once or twice in evaluation mode, and in training mode too where that leaves layers idle; its flags
            and buffers are restored.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.
        time_limit: Seconds that the trace may take.

    Raises:
        TracingError: The model does not run on the example, or not within the time.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        forward_fn: ForwardFunction | None = None,
        time_limit: float = 60.0,
    ) -> None:
        self.model = model
        self._deadline = Deadline(time_limit)
        self._table = LabelTable()
        self._axes = AxisTable(model, self._table)
        self._trace = Trace(self._axes, self._table)
        self._notes = self._trace.notes
        try:
            self._find_groups(example_inputs, lambda inputs: run_model(model, inputs, forward_fn))
        except SurgeryError:
            raise
        except Exception as error:
            raise TracingError(Reason.UNTRACEABLE.from_error(error, length=1000)) from error

    def _find_groups(self, example_inputs: Any, run_on: Callable[[Any], Any]) -> None:
        """Trace one run, more where layers stay idle; solve what is left open; sort the channels into groups."""
        run = partial(run_on, example_inputs)
        passes = Passes(self.model, self._trace, self._deadline)
        passes.take(example_inputs)
        pin_outputs(self._trace, passes.follow(run))
        idle = follow_idle(passes, example_inputs, run_on)
        self._pin_sizes_used_as_values(run)
        self._notes.width_constraints += shared_sizes(self._notes.hard_coded_sizes, self._table.size)
        classes = solve(self._table, self._notes.width_constraints, self._deadline)
        classes = pin_idle(self._trace, pin_unconsumed(self._trace, classes), idle)
        self._class_of = classes.class_of
        self._groups = {entry.group.root: entry for entry in labelled_groups(self._axes, classes)}
        self._state: dict[str, Any] = {"alive": torch.ones(self._table.size, dtype=torch.bool)}

    def _pin_sizes_used_as_values(self, run: Callable[[], Any]) -> None:
        """Pin channels where the attribute that counts them would have to change and enters a computed value too."""
        counted: dict[Attribute, list[Tensor]] = {}
        class_of = self._table.resolve().class_of if self._notes.hard_coded_sizes else None
        everything = torch.ones(self._table.size, dtype=torch.bool)
        for entry in self._notes.hard_coded_sizes:
            for source in sources_of(entry, everything, class_of):
                for attribute in source.attributes:
                    counted.setdefault(attribute, []).append(source.labels)
        if not counted:
            return
        with followable(self.model, self._axes.dense_weights):
            used = used_as_values(self.model, counted, run)
        for attribute in used:
            for labels in counted[attribute]:
                self._trace.pin(labels, Reason.WIDTH_AS_VALUE.because())

    @property
    def ran(self) -> set[nn.Module]:
        """Modules that the trace called."""
        return self._notes.ran

    @property
    def produced_output(self) -> set[nn.Module]:
        """Those among them that returned numbers: a detector that finds nothing runs its last heads on no box."""
        return self._notes.produced_output

    @property
    def rule_failures(self) -> tuple[Cause, ...]:
        """Rules that raised an exception in the trace, one for each operation."""
        return tuple(self._notes.rule_failures.values())

    @property
    def selects(self) -> bool:
        """Whether the model sorts or chooses by value: there, rounding can change the outputs completely."""
        return self._notes.selects

    def groups(self) -> list[ChannelGroup]:
        """Return all groups of coupled channels, in the order of the model's layers."""
        return [entry.group for entry in self._groups.values()]

    def width(self, root: str) -> int:
        """Return the number of channels of a group that are in the model now."""
        entry = self._entry(root)
        return int(self._state["alive"][entry.classes].sum()) * entry.group.channel_groups

    def _entry(self, root: str) -> LabelledGroup:
        if root not in self._groups:
            raise SurgeryError(f"the model has no channel group {root!r}; expected one of {list(self._groups)[:10]}")
        return self._groups[root]

    def _labels(self, root: str, indices: Sequence[int]) -> Tensor:
        """Return (L,) bool: the labels that are removed with these root channels.

        Raises:
            SurgeryError: An index is out of range, or only some of the parts of a channel are listed.
        """
        entry = self._entry(root)
        size, parts, count = entry.group.size, entry.group.channel_groups, len(entry.classes)
        index = torch.tensor([int(i) for i in indices], dtype=torch.long)
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= size):
            raise SurgeryError(
                f"{root} has {size} channels; asked to remove {index.numel()} of them, from {int(index.min())} to "
                f"{int(index.max())}"
            )
        times = torch.bincount(torch.unique(index) % count, minlength=count)
        if bool(((times != 0) & (times != parts)).any()):
            raise SurgeryError(f"{root} has {parts} equal parts, and the same channels of each must be removed")
        removed = torch.zeros(len(self._class_of), dtype=torch.bool)
        removed[entry.classes[times != 0]] = True
        return removed[self._class_of]

    def members_of(self, root: str, indices: Sequence[int]) -> tuple[Member, ...]:
        """Return the members concerned when these root channels are removed, each with its own indices."""
        wanted = {int(i) for i in indices}
        members = []
        for member in self._entry(root).group.members:
            pairs = [(i, r) for i, r in zip(member.indices, member.roots, strict=True) if r in wanted]
            if pairs:
                own, roots = zip(*pairs, strict=True)
                members.append(Member(member.module, member.name, member.role, own, roots))
        return tuple(members)

    def prune(self, root: str, indices: Sequence[int]) -> None:
        """Remove root channels, and all that is coupled to them, from the model in place.

        Args:
            root: Name of a group.
            indices: Root channels, numbered as before any pruning; those removed already are passed over.

        Raises:
            SurgeryError: An index is out of range, or a tensor would be emptied; nothing is changed then.
        """
        before = self._state["alive"]
        removed = self._labels(root, indices) & before
        axes = [axis for axis in self._axes.axes if bool(removed[axis.base : axis.base + axis.size].any())]
        changed = cut_(axes, before, removed)
        alive = before & ~removed
        # First, while layers still say what they said in the trace: a size is looked up among their attributes.
        update_sizes_(self._notes.hard_coded_sizes, alive, before, self._class_of)
        for module in dict.fromkeys([*changed, *self._notes.norm_inputs]):
            layer = layer_type(module)
            if layer is not None and layer.refresh is not None:
                layer.refresh(module, self._current_sizes(module, alive))
        rescale_(self._notes.rescales, self._axes, alive, before)
        renew_scales_(self._notes.scale_attributes, alive, before)
        self._state["alive"] = alive

    def rescaled(self) -> dict[str, dict[int, float]]:
        """Return by what pruning multiplied filters, to keep the effect of a scale that is computed from a width.

        Returns:
            By the layer's name and the filter's number before any pruning.
        """
        return rescale_factors(self._notes.rescales, self._axes, self._state["alive"])

    def _current_sizes(self, module: nn.Module, alive: Tensor) -> CurrentSizes:
        def count(labels: Tensor | None) -> int | None:
            return None if labels is None else int(alive[labels].sum())

        return CurrentSizes(
            inputs=count(self._notes.group_inputs.get(module)),
            normalized=count(self._notes.norm_inputs.get(module)),
            whole_groups=self._notes.whole_groups.get(module, False),
        )

    @contextmanager
    def masked(self, selection: Sequence[tuple[str, Sequence[int]]]) -> Iterator[None]:
        """While entered, the model (not yet pruned) computes as if these channels were removed.

        Args:
            selection: (root, root channels that are removed) of every group.
        """
        removed = torch.zeros(len(self._class_of), dtype=torch.bool)
        for root, indices in selection:
            removed |= self._labels(root, indices)
        removed[0] = False
        with followable(self.model, dense_weights(self.model)), MaskedReplay(self._notes.steps, removed):
            yield

    def bookkeeping(self) -> list[dict[str, Any]]:
        """Return the mutable state of the graph itself, for an exact rollback: dicts whose values may be replaced."""
        return [self._state]
