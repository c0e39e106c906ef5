"""From label classes to groups of channels that a user can be shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.channels.axes import Family, Registry
from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.channels.label_table import Classes
from norton_plugin.reasons import Cause

_PRODUCERS = (nn.modules.conv._ConvNd, nn.Linear, CPDBlock)


@dataclass(frozen=True)
class LabelGroup:
    """A group and the label classes that are its channels.

    Attributes:
        group: As shown; root channel r stands for class r modulo ``len(classes)``.
        classes: Root labels, in the order of the root layer's channels.
    """

    group: ChannelGroup
    classes: Tensor


def label_groups(registry: Registry, classes: Classes) -> list[LabelGroup]:
    """All groups of the model: classes whose channels lie in the same tensors equally often.

    Args:
        registry: Families of slots.
        classes: Outcome of the trace.
    """
    if not registry.families:
        return []
    family_of = torch.cat([torch.full((f.size,), i) for i, f in enumerate(registry.families)])
    labels = torch.cat([torch.arange(f.base, f.base + f.size) for f in registry.families])
    roots = classes.roots[labels]
    generator = torch.Generator().manual_seed(0)
    code = torch.randint(-(2**62), 2**62, (len(registry.families),), generator=generator)
    signature = torch.zeros_like(classes.roots).index_add_(0, roots, code[family_of])
    producing = torch.tensor([produces(family) for family in registry.families])
    made = torch.zeros(len(classes.roots), dtype=torch.bool)
    made[roots[producing[family_of]]] = True
    pinned = classes.pinned != 0
    groups: dict[tuple[int, int], LabelGroup] = {}
    taken: dict[str, int] = {}
    order = labels[producing[family_of]]
    first_seen: dict[tuple[int, int], Tensor] = {}
    keys = torch.stack([signature[classes.roots[order]], classes.pinned[classes.roots[order]]], 1)
    unique, inverse = torch.unique(keys, dim=0, return_inverse=True)
    position = torch.full((len(unique),), len(order)).scatter_reduce(0, inverse, torch.arange(len(order)), "amin")
    slots = _SlotIndex(registry, family_of, labels, roots)
    for number in torch.argsort(position).tolist():
        own = classes.roots[order[inverse == number]]
        distinct = _unique_in_order(own)
        key = (int(unique[number, 0]), int(unique[number, 1]))
        first_seen[key] = distinct
        reason = classes.reasons[key[1] - 1] if key[1] else None
        groups[key] = _group(registry, slots, distinct, reason, taken)
    del made, pinned
    return list(groups.values())


def _unique_in_order(values: Tensor) -> Tensor:
    unique, inverse = torch.unique(values, return_inverse=True)
    first = torch.full((len(unique),), len(values)).scatter_reduce(0, inverse, torch.arange(len(values)), "amin")
    return unique[torch.argsort(first)]


def produces(family: Family) -> bool:
    """Whether these are the filters of a layer."""
    return (
        family.role == "out"
        and family.numbers_filters
        and family.tensor == "weight"
        and isinstance(family.owner, _PRODUCERS)
    )


class _SlotIndex:
    """Slots sorted by class, to find those of some classes without a scan of all."""

    def __init__(self, registry: Registry, family_of: Tensor, labels: Tensor, roots: Tensor) -> None:
        order = torch.argsort(roots, stable=True)
        self.roots, self.labels, self.families = roots[order], labels[order], family_of[order]

    def of(self, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(labels, families, position of the class in ``classes``) of all slots, sorted by label."""
        start = torch.searchsorted(self.roots, classes)
        stop = torch.searchsorted(self.roots, classes, right=True)
        counts = stop - start
        which = torch.repeat_interleave(torch.arange(len(classes)), counts)
        offset = torch.arange(len(which)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        index = start[which] + offset
        order = torch.argsort(self.labels[index])
        return self.labels[index][order], self.families[index][order], which[order]


def _group(
    registry: Registry, slots: _SlotIndex, classes: Tensor, reason: Cause | None, taken: dict[str, int]
) -> LabelGroup:
    labels, families, which = slots.of(classes)
    count = len(classes)
    members: list[Member] = []
    root: Family | None = None
    parts = 1
    present = torch.unique(families).tolist()
    for number in present:
        if root is None and produces(registry.families[number]):
            root = registry.families[number]
            parts = int((families == number).sum()) // count
    for number in present:
        family = registry.families[number]
        if _covered(family, [registry.families[n] for n in present]):
            continue
        mine = families == number
        own, position = labels[mine] - family.base, which[mine]
        members.append(_member(family, own, position, count, parts))
    name = root.name if root is not None else "?"
    taken[name] = taken.get(name, 0) + 1
    if taken[name] > 1:
        name = f"{name}#{taken[name]}"
    members.sort(key=lambda m: 0 if root is not None and m.module is root.owner and m.role == "out" else 1)
    return LabelGroup(ChannelGroup(name, count * parts, parts, tuple(members), reason), classes)


def _covered(family: Family, present: list[Family]) -> bool:
    """Whether another family of the same module already stands for it: a bias beside its weight."""
    if family.tensor == "weight" or not isinstance(family.owner, nn.Module):
        return False
    return any(
        o.owner is family.owner and o.tensor == "weight" and (o.dim == family.dim or o.role == "out") for o in present
    )


def _member(family: Family, own: Tensor, position: Tensor, count: int, parts: int) -> Member:
    """Root channels are numbered part by part: the j-th slot of class c belongs to root (j mod parts) * count + c."""
    order = torch.argsort(position, stable=True)
    grouped = position[order]
    starts = torch.searchsorted(grouped, torch.arange(count))
    occurrence = torch.empty_like(position)
    occurrence[order] = torch.arange(len(grouped)) - starts[grouped]
    repeats = max(1, len(own) // max(1, count))
    part = occurrence * parts // repeats if repeats > parts else occurrence % parts
    module: nn.Module | nn.Parameter = family.owner
    name = family.name
    known = isinstance(family.owner, _PRODUCERS) or hasattr(family.owner, "weight")
    if not known:
        tensor = getattr(family.owner, family.tensor)
        module = tensor if isinstance(tensor, nn.Parameter) else family.owner
        name = f"{family.name}.{family.tensor}" if family.name else family.tensor
    return Member(module, name, family.role, tuple(own.tolist()), tuple((part * count + position).tolist()))
