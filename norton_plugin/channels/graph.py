"""The dependency graph of a model, made by following labels instead of guessing from shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.blocks import CPDBlock
from norton_plugin.channels import rules as rules  # importing them registers them
from norton_plugin.channels.attributes import used_as_values
from norton_plugin.channels.axes import Registry
from norton_plugin.channels.conditions import dense_blocks, module_stack, plain_kernels
from norton_plugin.channels.cutting import cut_, refresh_, rescale_
from norton_plugin.channels.grouping import LabelGroup, label_groups
from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.channels.hard_coded_sizes import Attribute, repair_, shared_sizes, sources_of
from norton_plugin.channels.label_maps import Shadow
from norton_plugin.channels.label_table import LabelTable
from norton_plugin.channels.masking import MaskedReplay
from norton_plugin.channels.provenance import SizeProvenance
from norton_plugin.channels.tracer import Tracer
from norton_plugin.channels.unread import pin_unread
from norton_plugin.errors import SurgeryError, TracingError
from norton_plugin.modules.running import ForwardFunction, output_tensors, run_model, traceable
from norton_plugin.reasons import Cause, Reason


class LabelGraph:
    """Groups of coupled channels by label propagation.

    Args:
        model: Traced in evaluation mode; its flags are restored.
        example_inputs: See ``run_model``.
        forward_fn: Replaces the plain call of the model.
        time_limit: Seconds the trace may take.

    Raises:
        TracingError: The model cannot be run on the example, or not within the time.
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
        table = LabelTable()
        self._registry = Registry(model, table)
        self._tracer = Tracer(self._registry, table, deadline=time.monotonic() + time_limit)
        for leaf in tree_leaves(example_inputs):
            if isinstance(leaf, Tensor):
                self._tracer.assign(leaf, Shadow((), False))
        try:
            weights = self._registry.block_weights
            with self._conditions(weights), module_stack(self._tracer), SizeProvenance(self._tracer), self._tracer:
                output = run_model(model, example_inputs, forward_fn)
            self._pin_values(lambda: run_model(model, example_inputs, forward_fn))
            self._resolve(output)
        except SurgeryError:
            raise
        except Exception as error:
            raise TracingError(Reason.UNTRACEABLE.from_error(error, length=1000)) from error

    def _pin_values(self, run: Callable[[], Any]) -> None:
        """Channels stay where the integer that counts them would have to change and is computed with as well."""
        counted: dict[Attribute, list[Tensor]] = {}
        roots = self._tracer.table.resolve().roots if self._tracer.stale else None
        everything = torch.ones(self._tracer.table.size, dtype=torch.bool)
        for entry in self._tracer.stale:
            for source in sources_of(entry, everything, roots):
                for attribute in source.attributes:
                    counted.setdefault(attribute, []).append(source.labels)
        if not counted:
            return
        with self._conditions(self._registry.block_weights):
            used = used_as_values(self.model, counted, run)
        for attribute in used:
            for labels in counted[attribute]:
                self._tracer.pin(labels, Reason.WIDTH_AS_VALUE.because())

    def _resolve(self, output: Any) -> None:
        """From what the trace noted to groups."""
        for tensor in output_tensors(output):
            for plane in self._tracer.shadow(tensor).planes:
                self._tracer.pin(plane, Reason.MODEL_OUTPUT.because())
        self._tracer.pin_numbered([leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)])
        size = self._tracer.table.size
        self._tracer.ties += shared_sizes(self._tracer.stale, size)
        classes = pin_unread(self._tracer, self._tracer.settle_ties())
        self._roots = classes.roots
        self._groups = {entry.group.root: entry for entry in label_groups(self._registry, classes)}
        self._state: dict[str, Any] = {"alive": torch.ones(size, dtype=torch.bool)}

    @contextmanager
    def _conditions(self, block_weights: Mapping[nn.Module, Tensor]) -> Iterator[None]:
        with traceable(self.model), plain_kernels(), dense_blocks(block_weights):
            yield

    @property
    def ran(self) -> set[nn.Module]:
        """Modules that the trace called."""
        return self._tracer.ran

    @property
    def busy(self) -> set[nn.Module]:
        """Those among them that computed something: detectors that find nothing run their last heads on no box."""
        return self._tracer.busy

    @property
    def selects(self) -> bool:
        """Whether something is sorted or chosen by its value: there, rounding can change the outputs altogether."""
        return self._tracer.selects

    @property
    def rule_failures(self) -> tuple[Cause, ...]:
        """Rules that raised an exception in the trace, one for each operation."""
        return tuple(self._tracer.failures.values())

    def groups(self) -> list[ChannelGroup]:
        """All groups of coupled output channels, in the order of the model's layers."""
        return [entry.group for entry in self._groups.values()]

    def width(self, root: str) -> int:
        """Channels of a group that are in the model now."""
        entry = self._entry(root)
        return int(self._state["alive"][entry.classes].sum()) * entry.group.channel_groups

    def _entry(self, root: str) -> LabelGroup:
        if root not in self._groups:
            raise SurgeryError(f"the model has no channel group {root!r}; expected one of {list(self._groups)[:10]}")
        return self._groups[root]

    def _labels(self, root: str, removed: Sequence[int]) -> Tensor:
        """(L,) bool: labels that go with these root channels.

        Raises:
            SurgeryError: An index is out of range, or only some of the parts of a channel are listed.
        """
        entry = self._entry(root)
        size, parts, count = entry.group.size, entry.group.channel_groups, len(entry.classes)
        index = torch.tensor([int(i) for i in removed], dtype=torch.long)
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= size):
            raise SurgeryError(
                f"{root} has {size} channels; asked to remove {index.numel()} of them, from {int(index.min())} to "
                f"{int(index.max())}"
            )
        times = torch.bincount(torch.unique(index) % count, minlength=count)
        if bool(((times != 0) & (times != parts)).any()):
            raise SurgeryError(f"{root} has {parts} equal parts, and the same channels of each must be removed")
        gone = torch.zeros(len(self._roots), dtype=torch.bool)
        gone[entry.classes[times != 0]] = True
        return gone[self._roots]

    def members_of(self, root: str, removed: Sequence[int]) -> tuple[Member, ...]:
        """The members concerned when these root channels go, each with its own indices."""
        wanted = {int(i) for i in removed}
        members = []
        for member in self._entry(root).group.members:
            pairs = [(i, r) for i, r in zip(member.indices, member.roots, strict=True) if r in wanted]
            if pairs:
                own, roots = zip(*pairs, strict=True)
                members.append(Member(member.module, member.name, member.role, own, roots))
        return tuple(members)

    def prune_(self, root: str, removed: Sequence[int]) -> None:
        """Removes root channels and all that is coupled to them, in place.

        Raises:
            SurgeryError: An index is out of range, or a tensor would be emptied; nothing is changed then.
        """
        gone = self._labels(root, removed)
        before = self._state["alive"]
        gone &= before
        families = [f for f in self._registry.families if bool(gone[f.base : f.base + f.size].any())]
        changed = cut_(families, before, gone)
        alive = before & ~gone
        for module in {module: None for module, _, _ in changed} | dict.fromkeys(self._tracer.norm_inputs):
            refresh_(module, self._tracer, alive)
        repair_(self._tracer.stale, alive, before, self._roots)
        rescale_(self._tracer.rescales, self._registry, alive, before)
        self._state["alive"] = alive

    @contextmanager
    def masked(self, selection: Sequence[tuple[str, Sequence[int]]]) -> Iterator[None]:
        """While entered, the model (not yet pruned) computes as if these channels were removed.

        Args:
            selection: (root, removed root channels) of every group.
        """
        gone = torch.zeros(len(self._roots), dtype=torch.bool)
        for root, removed in selection:
            gone |= self._labels(root, removed)
        gone[0] = False
        weights: dict[nn.Module, Tensor] = {
            block: block.weight.detach() for block in self.model.modules() if isinstance(block, CPDBlock)
        }
        with self._conditions(weights), MaskedReplay(self._tracer.steps, gone):
            yield

    def bookkeeping(self) -> list[dict[str, Any]]:
        """The mutable state of the graph itself, for an exact rollback: dicts whose values may be replaced."""
        return [self._state]
