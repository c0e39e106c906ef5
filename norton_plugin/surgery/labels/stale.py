"""Sizes that a module keeps as plain integers, and that pruning makes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from norton_plugin.surgery.labels.records import StaleSize

# Words in the names of attributes that hold widths: those are preferred.
_WIDTHS = ("dim", "chan", "chs", "width", "embed", "hidden", "features", "planes", "d_model", "split")
# Words in the names of attributes that hold something else: those are never touched.
_OTHERS = ("num_heads", "kernel", "stride", "padding", "dilation", "groups", "window", "img", "patch", "grid", "shift",
           "input_size", "resolution", "depth", "num_classes", "scale", "feat_size", "rank", "block", "halo",
           "ratio")  # fmt: skip
# An integer may have been computed as so many times an attribute.
_FACTORS = (2, 3, 4)
Attribute = tuple[nn.Module, str]


def attributes_of(entry: StaleSize, counts: Tensor) -> tuple[list[Attribute], Tensor, int]:
    """The attributes that a literal size seems to come from.

    The modules that were running are searched, the innermost of three first, for the size itself, then for the size
    of the whole that was split, then for a half, a third or a quarter of it.

    Args:
        entry: As the trace noted it.
        counts: (L,) bool, labels that count now.

    Returns:
        The attributes (all of one module), the channels they count, and by how much the size is a multiple of them.
    """
    size = int(counts[entry.labels].sum())
    tries: list[tuple[Tensor, int, int]] = [(entry.labels, size, 1)]
    if entry.whole is not None:
        tries.append((entry.whole, int(counts[entry.whole].sum()), 1))
    tries += [(entry.labels, size // factor, factor) for factor in _FACTORS if size % factor == 0]
    for labels, value, factor in tries:
        for module in reversed(entry.stack[-3:]):
            names = list(_holding(module, value))
            preferred = [name for name in names if any(word in name for word in _WIDTHS)]
            if factor > 1:
                names = preferred
            if names:
                return [(module, name) for name in preferred or names], labels, factor
    return [], entry.labels, 1


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


def shared_sizes(stale: Sequence[StaleSize], size: int) -> list[tuple[Tensor, Tensor]]:
    """Lists of channels that one and the same attribute counts, and that must therefore stay equally long.

    Args:
        stale: Literal sizes.
        size: L, labels.
    """
    everything = torch.ones(size, dtype=torch.bool)
    first: dict[Attribute, Tensor] = {}
    pairs = []
    for entry in stale:
        for attribute in attributes_of(entry, everything)[0]:
            other = first.setdefault(attribute, entry.labels)
            if other is not entry.labels and len(other) == len(entry.labels):
                pairs.append((other, entry.labels))
    return pairs


def repair_(stale: Sequence[StaleSize], alive: Tensor, before: Tensor) -> None:
    """Replaces literal sizes in the modules that used them; whole numbers and entries of lists.

    Args:
        stale: As the trace noted them.
        alive: (L,) bool, labels in the model now.
        before: (L,) bool, labels in it before.
    """
    changes: dict[Attribute, dict[int, int]] = {}
    for entry in stale:
        found, labels, factor = attributes_of(entry, before)
        old, new = int(before[labels].sum()) // factor, int(alive[labels].sum()) // factor
        if old == new:
            continue
        for attribute in found:
            changes.setdefault(attribute, {})[old] = new
    for (module, name), sizes in changes.items():
        value = vars(module)[name]
        if type(value) is int:
            setattr(module, name, sizes.get(value, value))
        else:
            setattr(module, name, type(value)(sizes.get(v, v) for v in value))
