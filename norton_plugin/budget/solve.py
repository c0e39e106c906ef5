"""One option of every menu, so that the errors are the lowest that the budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from norton_plugin.errors import MissingExtraError

Values = NDArray[np.float64]
# Costs are rounded up to bins: with so many of them for each menu, all roundings lose at most half a percent.
_BINS_PER_MENU = 200
_FEWEST_BINS = 4000
# Of the lowest error, between it and the one found, where there are several budgets: seconds in place of minutes.
GAP = 1e-3


def choose_options(costs: Sequence[Values], errors: Sequence[Values], limits: Values) -> list[int] | None:
    """Return the option of every menu with the lowest sum of errors whose costs stay within the limits.

    Args:
        costs: Per menu (options, budgets), whole numbers, not negative.
        errors: Per menu (options,).
        limits: (budgets,).

    Returns:
        Places in the menus, or None where nothing stays within.

    Raises:
        MissingExtraError: There are several budgets, and scipy is not installed.
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
    if not (limits > 0).all():
        return None
    starts = np.cumsum([0, *(len(error) for error in errors)])
    places = [list(range(start, end)) for start, end in pairwise(starts.tolist())]
    rows = [(own, [1.0] * len(own), 1.0) for own in places]
    found = mixed_integer_programme(np.concatenate(errors), np.concatenate(costs) / limits, rows, gap=GAP)
    return None if found is None else [int(found[own].argmax()) for own in places]


def mixed_integer_programme(
    errors: Values,
    costs: Values,
    rows: Sequence[tuple[Sequence[int], Sequence[float], float]],
    *,
    gap: float,
    seconds: float | None = None,
) -> Values | None:
    """Return variables of 0 and 1 with the lowest sum of errors.

    Args:
        errors: (variables,).
        costs: (variables, budgets), as shares of each budget.
        rows: Of each equation, its variables, their factors, and what they add up to.
        gap: Between the errors found and the lowest ones, as a share of these.
        seconds: After which the best that was found is taken; None for no limit.

    Returns:
        (variables,), or None where nothing stays within the budgets.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError as error:
        raise MissingExtraError(
            "several budgets at once need scipy, which is not installed; run: pip install 'norton-plugin[cluster]'"
        ) from error
    lengths = [len(variables) for variables, _, _ in rows]
    where = np.repeat(np.arange(len(rows)), lengths), np.concatenate([variables for variables, _, _ in rows])
    factors = np.concatenate([factors for _, factors, _ in rows])
    equations = csr_array((factors, where), shape=(len(rows), len(errors)))
    sums = np.array([total for _, _, total in rows])
    answer = milp(
        errors,
        integrality=np.ones(len(errors)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(csr_array(costs.T), ub=1), LinearConstraint(equations, sums, sums)],
        options={"mip_rel_gap": gap, **({} if seconds is None else {"time_limit": seconds})},
    )
    return None if answer.x is None else np.asarray(answer.x, dtype=np.float64)
