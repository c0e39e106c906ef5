"""Cuts and layers within several budgets: the best there is, by trying all."""

from itertools import product

import numpy as np
import pytest

from norton_plugin.budget.nested import Branch, Menu, choose_nested, undominated

pytest.importorskip("scipy")


def _trees(seed: int) -> list[list[Branch]]:
    generator = np.random.default_rng(seed)

    def menu() -> Menu:
        size = int(generator.integers(1, 4))
        return Menu(generator.integers(0, 40, (size, 2)).astype(float), generator.random(size))

    return [
        [Branch(float(generator.random()), tuple(menu() for _ in range(generator.integers(0, 3)))) for _ in range(cuts)]
        for cuts in (3, 1, 2)
    ]


def _outcome(trees: list[list[Branch]], chosen: list[tuple[int, tuple[int, ...]]]) -> tuple[np.ndarray, float]:
    cost, error = np.zeros(2), 0.0
    for tree, (place, options) in zip(trees, chosen, strict=True):
        error += tree[place].error
        for menu, option in zip(tree[place].menus, options, strict=True):
            cost, error = cost + menu.costs[option], error + menu.errors[option]
    return cost, error


def _all(tree: list[Branch]) -> list[tuple[int, tuple[int, ...]]]:
    return [
        (place, options)
        for place, branch in enumerate(tree)
        for options in product(*(range(len(menu.errors)) for menu in branch.menus))
    ]


@pytest.mark.parametrize("seed", range(6))
def test_no_combination_is_better(seed):
    trees = _trees(seed)
    outcomes = [_outcome(trees, list(chosen)) for chosen in product(*map(_all, trees))]
    for limits in (np.array([20.0, 100.0]), np.array([50.0, 60.0]), np.array([400.0, 400.0])):
        expected = min((error for cost, error in outcomes if (cost <= limits).all()), default=np.inf)
        found = choose_nested(trees, limits)
        if found is None:
            assert expected == np.inf
            continue
        cost, error = _outcome(trees, [(place, tuple(options)) for place, options in found])
        assert (cost <= limits).all() and error == pytest.approx(expected, rel=1e-3)
    assert choose_nested(trees, np.array([100.0, -1.0])) is None


def test_options_that_another_beats_in_everything_are_left_out():
    costs = np.array([[4.0, 4.0], [2.0, 5.0], [5.0, 5.0], [1.0, 9.0], [4.0, 4.0]])
    errors = np.array([0.0, 0.2, 0.3, 0.1, 0.0])
    assert sorted(undominated(costs, errors).tolist()) == [0, 1, 3]
