"""Sizes that a module keeps as plain integers, and that are wrong once channels are removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norton_plugin.channels.records import HardCodedSize, WidthConstraint

# Words in the names of attributes that hold widths: those are preferred.
_WIDTHS = ("dim", "chan", "chs", "width", "embed", "hidden", "features", "planes", "d_model", "split")
# Words in the names of attributes that hold something else: those are never touched.
_OTHERS = ("num_heads", "kernel", "stride", "padding", "dilation", "groups", "window", "img", "patch", "grid", "shift",
           "input_size", "resolution", "depth", "num_classes", "scale", "feat_size", "rank", "block", "halo",
           "ratio")  # fmt: skip
# An integer may have been computed as so many times an attribute.
_FACTORS = (2, 3, 4)
Attribute = tuple[nn.Module, str]


@dataclass(frozen=True)
class Source:
    """Where a hard-coded size may come from.

    Attributes:
        attributes: Of one module, all of the same value.
        labels: Channels that the value counts.
        factor: The value times this is their number.
    """

    attributes: tuple[Attribute, ...]
    labels: Tensor
    factor: int = 1


def sources_of(entry: HardCodedSize, counted: Tensor, class_of: Tensor | None = None) -> list[Source]:
    """Find the attributes that a hard-coded size seems to come from, the likeliest first.

    The modules that were running are searched, the innermost of three first, for the size itself and for the size of
    the whole that was split; for the number of distinct channels where each is counted several times, as in all heads
    of an attention; where there is none of these, for a half, a third or a quarter of the size.

    Args:
        entry: As the trace noted it.
        counted: (L,) bool, labels that are counted.
        class_of: (L,) the class of every label, where it is known.
    """
    tries = [(entry.labels, 1)] if entry.whole is None else [(entry.labels, 1), (entry.whole, 1)]
    if class_of is not None and (repeats := len(entry.labels) // len(torch.unique(class_of[entry.labels]))) > 1:
        tries.append((entry.labels, repeats))
    found = [source for labels, factor in tries if (source := _search(entry, labels, factor, counted))]
    if found:
        return found
    fractions = (_search(entry, entry.labels, factor, counted) for factor in _FACTORS)
    return [source for source in fractions if source][:1]


def _search(entry: HardCodedSize, labels: Tensor, factor: int, counted: Tensor) -> Source | None:
    size = int(counted[labels].sum())
    if size % factor:
        return None
    for module in reversed(entry.stack[-3:]):
        names = list(_holding(module, size // factor))
        preferred = [name for name in names if any(word in name for word in _WIDTHS)]
        if factor > 1:
            names = preferred
        if names:
            return Source(tuple((module, name) for name in preferred or names), labels, factor)
    return None


def holds_width(stack: Sequence[nn.Module], size: int) -> bool:
    """Tell whether an attribute that is named like a width holds a size, in the modules that are searched for one.

    Args:
        stack: Modules that are running, the innermost last.
        size: The size.
    """
    names = (name for module in stack[-3:] for name in _holding(module, size))
    return any(word in name for name in names for word in _WIDTHS)


def _holding(module: nn.Module, value: int) -> Iterator[str]:
    for name, held in vars(module).items():
        if name.startswith("_") or any(word in name for word in _OTHERS):
            continue
        if (
            type(held) is int
            and held == value
            or type(held) in (list, tuple)
            and value in held
            and all(type(v) is int for v in held)
        ):
            yield name


def shared_sizes(sizes: Sequence[HardCodedSize], count: int) -> list[WidthConstraint]:
    """Find channels that one and the same attribute counts, and whose numbers must therefore stay equal.

    Args:
        sizes: As the trace noted them.
        count: L, labels.
    """
    everything = torch.ones(count, dtype=torch.bool)
    first: dict[Attribute, Tensor] = {}
    constraints = []
    for entry in sizes:
        for attribute in (a for source in sources_of(entry, everything)[:1] for a in source.attributes):
            other = first.setdefault(attribute, entry.labels)
            if other is not entry.labels and len(other) == len(entry.labels):
                constraints.append(WidthConstraint(other, entry.labels))
    return constraints


def update_sizes_(sizes: Sequence[HardCodedSize], alive: Tensor, before: Tensor, class_of: Tensor) -> None:
    """Replace hard-coded sizes in the modules that used them: integers and entries of lists.

    Args:
        sizes: As the trace noted them.
        alive: (L,) bool, labels in the model now.
        before: (L,) bool, labels in it before.
        class_of: (L,) the class of every label.
    """
    changes: dict[Attribute, dict[int, int]] = {}
    for entry in sizes:
        for source in sources_of(entry, before, class_of):
            old, new = (int(counted[source.labels].sum()) // source.factor for counted in (before, alive))
            if old != new:
                for attribute in source.attributes:
                    changes.setdefault(attribute, {})[old] = new
    for (module, name), replacements in changes.items():
        value = vars(module)[name]
        if type(value) is int:
            setattr(module, name, replacements.get(value, value))
        else:
            setattr(module, name, type(value)(replacements.get(v, v) for v in value))
