"""The choice is the best there is, by trying all."""

from itertools import product

import numpy as np
import pytest

from norton_plugin.budget.solve import choose_options


def _menus(seed: int, budgets: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(2, 6, 5)
    costs = [generator.integers(0, 60, (size, budgets)).astype(float) for size in sizes]
    return costs, [generator.random(size) for size in sizes]


def _lowest(costs: list[np.ndarray], errors: list[np.ndarray], limits: np.ndarray) -> float:
    """Try every combination."""
    sums = [
        sum(error[place] for error, place in zip(errors, places, strict=True))
        for places in product(*(range(len(error)) for error in errors))
        if (sum(cost[place] for cost, place in zip(costs, places, strict=True)) <= limits).all()
    ]
    return min(sums, default=np.inf)


@pytest.mark.parametrize("budgets", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_no_combination_is_better(seed, budgets):
    if budgets == 2:
        pytest.importorskip("scipy")
    costs, errors = _menus(seed, budgets)
    for limit in (60, 100, 150, 400):
        limits = np.full(budgets, float(limit))
        expected = _lowest(costs, errors, limits)
        found = choose_options(costs, errors, limits)
        if found is None:
            assert expected == np.inf
            continue
        assert (sum(cost[place] for cost, place in zip(costs, found, strict=True)) <= limits).all()
        assert sum(error[place] for error, place in zip(errors, found, strict=True)) == pytest.approx(expected)


def test_large_costs_are_within_half_a_percent_of_the_budget():
    generator = np.random.default_rng(0)
    costs = [np.sort(generator.integers(1, 10**9, (40, 1)), axis=0).astype(float) for _ in range(60)]
    errors = [1 - cost[:, 0] / 1e9 for cost in costs]  # an error that falls as the cost grows: all of it is used
    limits = np.array([2e10])
    found = choose_options(costs, errors, limits)
    used = sum(cost[place, 0] for cost, place in zip(costs, found, strict=True))
    assert 0.995 * limits[0] <= used <= limits[0]


def test_nothing_within_the_budget_is_none():
    assert choose_options([np.array([[5.0]])], [np.array([0.0])], np.array([4.0])) is None
    pytest.importorskip("scipy")
    assert choose_options([np.array([[1.0, 9.0], [9.0, 1.0]])], [np.zeros(2)], np.array([5.0, 5.0])) is None
