"""Curves through measured points, against scipy's."""

import numpy as np
import pytest

from norton_plugin.latency.monotone import interpolated, rising, spread


def test_pooled_neighbours_are_those_of_isotonic_regression():
    optimize = pytest.importorskip("scipy.optimize")
    if not hasattr(optimize, "isotonic_regression"):
        pytest.skip("needs scipy 1.12")
    generator = np.random.default_rng(0)
    for size in (1, 2, 5, 20):
        for _ in range(20):
            values = generator.normal(size=size) + 0.1 * np.arange(size)
            np.testing.assert_allclose(rising(values), optimize.isotonic_regression(values).x)


def test_between_points_the_curve_is_straight_and_never_falls():
    assert interpolated([0, 2, 4, 6, 9], [2, 6, 8], [1.0, 3.0, 2.0]).tolist() == [1.0, 1.0, 1.75, 2.5, 2.5]


def test_measured_sizes_are_spread_in_even_ratios():
    assert spread([1, 2, 3], 5) == [1, 2, 3]
    assert spread(list(range(1, 257)), 5) == [1, 4, 16, 64, 256]
