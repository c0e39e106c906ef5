"""Widths that the code computes from one another: they have to stay in proportion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from norton_plugin.channels.deadline import Deadline
from norton_plugin.channels.label_table import Classes, LabelTable
from norton_plugin.channels.records import WidthConstraint
from norton_plugin.reasons import Reason


def solve(table: LabelTable, constraints: Sequence[WidthConstraint], deadline: Deadline) -> Classes:
    """Unite channels until all widths stay in proportion, whichever classes of channels are removed.

    Most constraints hold by themselves: both sides count the same channels, in another order. Where one does not,
    channels at the same positions of both sides are united.

    Args:
        table: Takes the unions.
        constraints: As the trace noted them.
        deadline: Checked in each round.

    Returns:
        The classes that result.
    """
    pending = list(constraints)
    while True:
        deadline.check()
        classes = table.resolve()
        violated = [entry for entry in pending if not _in_proportion(classes.class_of, entry)]
        if not violated:
            return classes
        # First those between widths of different size (the width of a head and of all heads): uniting their channels
        # often brings the others into proportion as well.
        batch = [entry for entry in violated if len(entry.source) != len(entry.target)] or violated
        for entry in batch:
            _unite(table, entry)
        pending = [entry for entry in pending if all(entry is not other for other in batch)]


def _unite(table: LabelTable, constraint: WidthConstraint) -> None:
    source, target = constraint.source, constraint.target
    m, n = len(source), len(target)
    if m % n == 0:
        table.unite(source.view(m // n, n), target[None])
    elif n % m == 0:
        table.unite(target.view(n // m, m), source[None])
    else:
        table.pin(target, Reason.COMPUTED_WIDTH.because())
        table.pin(source, Reason.COMPUTED_WIDTH.because())


def _in_proportion(class_of: Tensor, constraint: WidthConstraint) -> bool:
    """Return whether each class makes up the same share of both sides."""
    a, b = constraint.source, constraint.target
    classes_a, count_a = torch.unique(class_of[a], return_counts=True)
    classes_b, count_b = torch.unique(class_of[b], return_counts=True)
    return torch.equal(classes_a, classes_b) and bool((count_a * len(b) == count_b * len(a)).all())
