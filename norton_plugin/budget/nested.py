"""Cuts of groups, and under each cut one option of every layer, within several budgets: one integer programme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from norton_plugin.budget.solve import GAP, Values, mixed_integer_programme

_SECONDS = 60.0  # after which the best choice found so far is taken


@dataclass(frozen=True)
class Menu:
    """The options of one layer, of which one is chosen where its branch is.

    Attributes:
        costs: (options, budgets).
        errors: (options,).
    """

    costs: Values
    errors: Values


@dataclass(frozen=True)
class Branch:
    """One cut of a group, or none.

    Attributes:
        error: Of the cut.
        menus: Of the layers that it touches.
    """

    error: float
    menus: tuple[Menu, ...]


def undominated(costs: Values, errors: Values) -> NDArray[np.intp]:
    """Return the places of the options that no other one beats in its error and in all costs, by rising error."""
    kept: list[int] = []
    for place in np.lexsort((costs.sum(1), errors)):
        if not any((costs[other] <= costs[place]).all() for other in kept):
            kept.append(int(place))
    return np.array(kept, dtype=np.intp)


def choose_nested(trees: Sequence[Sequence[Branch]], limits: Values) -> list[tuple[int, list[int]]] | None:
    """Return one branch of every tree, and one option of each of its menus, with the lowest sum of errors.

    Args:
        trees: Branches of each group; a layer outside of groups is a tree of one branch.
        limits: (budgets,), positive.

    Returns:
        The place of the branch and those of the options, or None where nothing stays within the limits.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    if not (limits > 0).all():
        return None
    errors: list[float] = []
    costs: list[Values] = []
    rows: list[tuple[list[int], list[float], float]] = []  # variables, their factors, and what they add up to
    starts = []
    for tree in trees:
        first = len(errors)
        errors += [branch.error for branch in tree]
        costs += [np.zeros((len(tree), len(limits)))]
        rows.append((list(range(first, first + len(tree))), [1.0] * len(tree), 1.0))
        starts.append(first)
        for place, branch in enumerate(tree):
            for menu in branch.menus:
                own = list(range(len(errors), len(errors) + len(menu.errors)))
                errors += menu.errors.tolist()
                costs.append(menu.costs)
                rows.append(([*own, first + place], [*([1.0] * len(own)), -1.0], 0.0))
    chosen = mixed_integer_programme(np.array(errors), np.concatenate(costs) / limits, rows, gap=GAP, seconds=_SECONDS)
    return None if chosen is None else [_read(chosen, start, tree) for start, tree in zip(starts, trees, strict=True)]


def _read(chosen: Values, start: int, tree: Sequence[Branch]) -> tuple[int, list[int]]:
    """Return the branch of a tree that was chosen, and the options of its menus."""
    branch = int(chosen[start : start + len(tree)].argmax())
    place = start + len(tree) + sum(len(menu.errors) for other in tree[:branch] for menu in other.menus)
    options = []
    for menu in tree[branch].menus:
        options.append(int(chosen[place : place + len(menu.errors)].argmax()))
        place += len(menu.errors)
    return branch, options
