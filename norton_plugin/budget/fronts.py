"""The best trade-offs between cost and error of several layers together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from norton_plugin.budget.solve import Values

# Points that a front keeps: neighbours differ by less than the bins of the knapsack.
_MOST_POINTS = 400


@dataclass(frozen=True)
class Front:
    """Choices, cheap ones first; each dearer one errs less.

    Attributes:
        costs: (P,).
        errors: (P,).
        choices: Of each point, what it stands for.
    """

    costs: Values
    errors: Values
    choices: tuple[tuple[Hashable, ...], ...]


def front_of(costs: Values, errors: Values, choices: Sequence[tuple[Hashable, ...]]) -> Front:
    """Return the points that no other point beats in both, thinned out where they are many.

    Args:
        costs: (P,), of all points.
        errors: (P,).
        choices: What they stand for.
    """
    order = np.lexsort((errors, costs))
    best = np.minimum.accumulate(errors[order])
    kept = order[np.r_[True, errors[order][1:] < best[:-1]]]
    if len(kept) > _MOST_POINTS:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, _MOST_POINTS).round().astype(int))]
    return Front(costs[kept], errors[kept], tuple(choices[i] for i in kept))


def together(first: Front, second: Front) -> Front:
    """Return the front of two that are chosen from independently: costs and errors add up."""
    costs = (first.costs[:, None] + second.costs).ravel()
    errors = (first.errors[:, None] + second.errors).ravel()
    pairs = [(*a, *b) for a in first.choices for b in second.choices]
    return front_of(costs, errors, pairs)


def either(fronts: Sequence[Front]) -> Front:
    """Return the front of several of which one is chosen."""
    choices = [choice for front in fronts for choice in front.choices]
    return front_of(np.concatenate([f.costs for f in fronts]), np.concatenate([f.errors for f in fronts]), choices)
