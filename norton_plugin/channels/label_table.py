"""All labels of a trace: which of them are the same channel, and which channels must stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from norton_plugin.reasons import Cause

# Unions that are collected before they are merged, which bounds the memory that they need (16 bytes each).
MAX_PENDING = 1 << 24


def connected(size: int, first: Tensor, second: Tensor) -> Tensor:
    """Find the connected components of an undirected graph.

    Every component hooks onto its smallest neighbour, then paths are halved by pointer jumping. The number of
    components with an edge left at least halves in each round, so there are O(log n) rounds of vector operations.

    Args:
        size: Nodes 0 ... size - 1.
        first: One end of every edge, (E,) int64.
        second: The other end, (E,).

    Returns:
        (size,) int64: the smallest node of the component of every node.
    """
    smallest = torch.arange(size)
    while True:
        a, b = smallest[first], smallest[second]
        low = torch.minimum(a, b)
        hooked = smallest.scatter_reduce(0, a, low, "amin").scatter_reduce(0, b, low, "amin")
        while not torch.equal(jumped := hooked[hooked], hooked):
            hooked = jumped
        if torch.equal(hooked, smallest):
            return smallest
        smallest = hooked


@dataclass(frozen=True)
class Classes:
    """Labels sorted into classes: all labels of a class are one and the same channel.

    Attributes:
        class_of: (L,) the class of every label, named by its smallest label.
        pinned: (L,) 0 where the label's class is free, otherwise 1 + the position of the reason.
        reasons: Why classes must stay.
    """

    class_of: Tensor
    pinned: Tensor
    reasons: tuple[Cause, ...]


class LabelTable:
    """Collect labels, unions and pins while a model is traced. Label 0 means: belongs to no channel."""

    def __init__(self) -> None:
        self.size = 1
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []
        self._pending = 0
        self._pins: list[tuple[Tensor, Cause]] = []

    def allocate(self, count: int) -> int:
        """Allocate consecutive labels; return the first."""
        base, self.size = self.size, self.size + count
        return base

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Note that a[i] and b[i] are the same channel, for all i after broadcasting; label 0 joins nothing."""
        a, b = torch.broadcast_tensors(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        wanted = (a != b) & (a != 0) & (b != 0)
        if bool(wanted.any()):
            keys = torch.unique(a[wanted] * (1 << 31) + b[wanted])
            self._first.append(keys >> 31)
            self._second.append(keys & ((1 << 31) - 1))
            self._pending += len(keys)
            if self._pending > MAX_PENDING:
                self._shorten()

    def _shorten(self) -> None:
        """Keep one edge per label: from it to its class so far."""
        smallest = connected(self.size, torch.cat(self._first), torch.cat(self._second))
        labels = torch.nonzero(smallest != torch.arange(self.size)).reshape(-1)
        self._first, self._second, self._pending = [labels], [smallest[labels]], 0

    def pin(self, labels: Tensor, reason: Cause) -> None:
        """Note that these channels must stay."""
        labels = torch.unique(labels)
        labels = labels[labels != 0]
        if labels.numel():
            self._pins.append((labels, reason))

    def resolve(self) -> Classes:
        """Return the classes; of several reasons for a class, the first that does not block it, or else the first.

        A channel that has to stay in any case, such as an output of the model, stays for that reason.
        """
        empty = torch.zeros(0, dtype=torch.long)
        class_of = connected(self.size, torch.cat([empty, *self._first]), torch.cat([empty, *self._second]))
        reasons = tuple(dict.fromkeys(reason for _, reason in self._pins))
        position = {reason: index for index, reason in enumerate(reasons)}
        pinned = torch.zeros(self.size, dtype=torch.long)
        # What is written last counts.
        backwards = self._pins[::-1]
        for labels, reason in sorted(backwards, key=lambda pin: not pin[1].blocks):
            pinned[class_of[labels]] = 1 + position[reason]
        return Classes(class_of, pinned[class_of], reasons)
