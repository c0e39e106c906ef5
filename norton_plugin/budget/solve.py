"""One option of every menu, so that the errors are the lowest that the budget allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from norton_plugin.errors import MissingExtraError

Values = NDArray[np.float64]
# Costs are rounded up to bins: with so many of them for each menu, all roundings lose at most half a percent.
_BINS_PER_MENU = 200
_FEWEST_BINS = 4000
_GAP = (
    1e-3  # of the lowest error, between it and the one found, where there are two budgets: seconds in place of minutes
)


def choose_options(costs: Sequence[Values], errors: Sequence[Values], limits: Values) -> list[int] | None:
    """Return the option of every menu with the lowest sum of errors whose costs stay within the limits.

    Args:
        costs: Per menu (options, budgets), whole numbers, not negative.
        errors: Per menu (options,).
        limits: (budgets,), one or two.

    Returns:
        Places in the menus, or None where nothing stays within.

    Raises:
        MissingExtraError: There are two budgets, and scipy is not installed.
    """
    if len(limits) == 1:
        return _by_bins([cost[:, 0] for cost in costs], errors, float(limits[0]))
    return _by_branching(costs, errors, limits)


def _by_bins(costs: Sequence[Values], errors: Sequence[Values], limit: float) -> list[int] | None:
    """Solve for one budget by dynamic programming over bins of cost; exact where there are as many bins as units."""
    least = [float(cost.min()) for cost in costs]
    free = limit - sum(least)
    if free < 0:
        return None
    bins = max(_FEWEST_BINS, _BINS_PER_MENU * len(costs))
    unit = max(1.0, limit / bins)
    count = int(free // unit) + 1
    best = np.zeros(count)  # lowest error of the menus so far, at no more than so many bins
    choices = []
    steps = [np.ceil((cost - low) / unit).astype(int) for cost, low in zip(costs, least, strict=True)]
    for step, error in zip(steps, errors, strict=True):
        found, choice = np.full(count, np.inf), np.zeros(count, dtype=np.int32)
        for option, (size, own) in enumerate(zip(step, error, strict=True)):
            if size >= count:
                continue
            candidate = best[: count - size] + own
            better = candidate < found[size:]
            found[size:][better] = candidate[better]
            choice[size:][better] = option
        best = found
        choices.append(choice)
    chosen, place = [], count - 1
    for step, choice in zip(reversed(steps), reversed(choices), strict=True):
        chosen.append(int(choice[place]))
        place -= int(step[chosen[-1]])
    return chosen[::-1]


def _by_branching(costs: Sequence[Values], errors: Sequence[Values], limits: Values) -> list[int] | None:
    """Solve for several budgets as a mixed integer programme."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise MissingExtraError(
            "two budgets at once need scipy, which is not installed; run: pip install 'norton-plugin[cluster]'"
        ) from error
    all_costs, all_errors = np.concatenate(costs), np.concatenate(errors)
    sizes = [len(error) for error in errors]
    one_each = np.zeros((len(sizes), len(all_errors)))
    for menu, (start, size) in enumerate(zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)):
        one_each[menu, start : start + size] = 1
    within = LinearConstraint((all_costs / limits).T, ub=1)
    answer = milp(
        all_errors,
        integrality=np.ones(len(all_errors)),
        bounds=Bounds(0, 1),
        constraints=[within, LinearConstraint(one_each, 1, 1)],
        options={"mip_rel_gap": _GAP},
    )
    if answer.x is None:
        return None
    return [int(part.argmax()) for part in np.split(answer.x, np.cumsum(sizes)[:-1])]
