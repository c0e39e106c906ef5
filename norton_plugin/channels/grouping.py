"""From classes of labels to the groups of channels that a user sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.channels.label_table import Classes
from norton_plugin.channels.layers import is_producer
from norton_plugin.channels.tensor_axes import RETURNED, AxisTable, TensorAxis
from norton_plugin.reasons import Cause


@dataclass(frozen=True)
class LabelledGroup:
    """A group and the classes of labels that are its channels.

    Attributes:
        group: As shown to the user; root channel r stands for class r modulo ``len(classes)``.
        classes: (C,) classes, in the order of the root layer's filters.
    """

    group: ChannelGroup
    classes: Tensor


def labelled_groups(axes: AxisTable, classes: Classes) -> list[LabelledGroup]:
    """Return all groups of the model: classes whose channels lie in the same tensor axes equally often.

    Args:
        axes: All tensor axes.
        classes: Outcome of the trace.
    """
    if not axes.axes:
        return []
    axis_of = torch.cat([torch.full((axis.size,), i) for i, axis in enumerate(axes.axes)])
    labels = torch.cat([torch.arange(axis.base, axis.base + axis.size) for axis in axes.axes])
    producing = torch.tensor([produces(axis) for axis in axes.axes])
    order = labels[producing[axis_of]]  # of all filters, in the order of the model's layers
    keys = _keys(axes, classes, axis_of, labels)[classes.class_of[order]]
    unique, inverse = torch.unique(keys, dim=0, return_inverse=True)
    position = torch.full((len(unique),), len(order)).scatter_reduce(0, inverse, torch.arange(len(order)), "amin")
    entries = _EntryIndex(axis_of, labels, classes.class_of[labels])
    groups: list[LabelledGroup] = []
    taken: dict[str, int] = {}
    for number in torch.argsort(position).tolist():
        own = _unique_in_order(classes.class_of[order[inverse == number]])
        pinned = int(unique[number, 1])
        reason = classes.reasons[pinned - 1] if pinned else None
        groups.append(_group(axes, entries, own, reason, taken))
    return groups


def _keys(axes: AxisTable, classes: Classes, axis_of: Tensor, labels: Tensor) -> Tensor:
    """Return (L, 2): equal rows for classes with as many entries in each axis and the same reason to stay."""
    # A sum of one random number per entry: equal for equal multisets of axes, and for others only by chance (2^-63).
    generator = torch.Generator().manual_seed(0)
    code = torch.randint(-(2**62), 2**62, (len(axes.axes),), generator=generator)
    signature = torch.zeros_like(classes.class_of).index_add_(0, classes.class_of[labels], code[axis_of])
    return torch.stack([signature, classes.pinned], 1)


def _unique_in_order(values: Tensor) -> Tensor:
    unique, inverse = torch.unique(values, return_inverse=True)
    first = torch.full((len(unique),), len(values)).scatter_reduce(0, inverse, torch.arange(len(values)), "amin")
    return unique[torch.argsort(first)]


def produces(axis: TensorAxis) -> bool:
    """Return whether the positions of an axis are the filters of a layer."""
    return axis.role == "out" and axis.numbers_filters and axis.tensor == "weight" and is_producer(axis.owner)


class _EntryIndex:
    """The entries (positions of tensor axes) sorted by class, to find those of some classes without a scan of all."""

    def __init__(self, axis_of: Tensor, labels: Tensor, class_of: Tensor) -> None:
        order = torch.argsort(class_of, stable=True)
        self.classes, self.labels, self.axes = class_of[order], labels[order], axis_of[order]

    def of(self, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (label, axis, position of the class in ``classes``) of all entries, sorted by label."""
        start = torch.searchsorted(self.classes, classes)
        stop = torch.searchsorted(self.classes, classes, right=True)
        counts = stop - start
        which = torch.repeat_interleave(torch.arange(len(classes)), counts)
        offset = torch.arange(len(which)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        index = start[which] + offset
        order = torch.argsort(self.labels[index])
        return self.labels[index][order], self.axes[index][order], which[order]


def _group(
    table: AxisTable, entries: _EntryIndex, classes: Tensor, reason: Cause | None, taken: dict[str, int]
) -> LabelledGroup:
    labels, axis_of, which = entries.of(classes)
    count = len(classes)
    numbers = torch.unique(axis_of).tolist()
    present = {number: table.axes[number] for number in numbers}
    root, parts = None, 1
    first = next((number for number, axis in present.items() if produces(axis)), None)
    if first is not None:
        root, parts = present[first], int((axis_of == first).sum()) // count
    members: list[Member] = []
    for number, axis in present.items():
        if axis.sites and not _covered(axis, present.values()):
            mine = axis_of == number
            members.append(_member(axis, labels[mine] - axis.base, which[mine], count, parts))
    name = root.name if root is not None else "?"
    taken[name] = taken.get(name, 0) + 1
    if taken[name] > 1:
        name = f"{name}#{taken[name]}"
    members.sort(key=lambda m: 0 if root is not None and m.module is root.owner and m.role == "out" else 1)
    return LabelledGroup(ChannelGroup(name, count * parts, parts, tuple(members), reason), classes)


def _covered(axis: TensorAxis, present: Iterable[TensorAxis]) -> bool:
    """Return whether another axis of the same module stands for this one already: a bias beside its weight."""
    if axis.tensor == "weight":
        return False
    return any(
        o.owner is axis.owner and o.tensor == "weight" and (o.dim == axis.dim or o.role == "out") for o in present
    )


def _member(axis: TensorAxis, own: Tensor, position: Tensor, count: int, parts: int) -> Member:
    """Make a member; entry j of class c belongs to root channel (j mod parts) * count + c.

    Args:
        axis: The member's.
        own: Positions along the axis.
        position: Of each, the position of its class in the group.
        count: Classes of the group.
        parts: Equal parts of the root layer's filters.
    """
    order = torch.argsort(position, stable=True)
    grouped = position[order]
    starts = torch.searchsorted(grouped, torch.arange(count))
    occurrence = torch.empty_like(position)
    occurrence[order] = torch.arange(len(grouped)) - starts[grouped]
    repeats = max(1, len(own) // max(1, count))
    part = occurrence * parts // repeats if repeats > parts else occurrence % parts
    module: nn.Module | nn.Parameter = axis.owner
    name = axis.name
    if axis.tensor != RETURNED and not is_producer(axis.owner) and not hasattr(axis.owner, "weight"):
        tensor = getattr(axis.owner, axis.tensor)
        module = tensor if isinstance(tensor, nn.Parameter) else axis.owner
        name = f"{axis.name}.{axis.tensor}" if axis.name else axis.tensor
    return Member(module, name, axis.role, tuple(own.tolist()), tuple((part * count + position).tolist()))
