"""Where the marks of the page's charts are."""

import pytest

from norton_plugin.insight.page.charts import heat_map, round_ticks, scatter
from norton_plugin.insight.page.stored import StoredLayer, StoredMap


def layer(name, *, rank, nmse, components=None):
    level = "filter" if components is None else "layer"
    return StoredLayer(name, "CPDBlock", 9, 3, 9, 3, nmse, 1.0, level, rank, None, components)


@pytest.mark.parametrize(
    ("largest", "ticks"),
    [
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.62, [0, 0.2, 0.4, 0.6, 0.8]),
        (3.5, [0, 1, 2, 3, 4]),
        (47, [0, 10, 20, 30, 40, 50]),
        (1e-5, [0, 2e-6, 4e-6, 6e-6, 8e-6, 1e-5]),
    ],
)
def test_ticks_are_round_and_cover_the_values(largest, ticks):
    assert round_ticks(largest) == pytest.approx(ticks)


def test_scatter_is_linear_where_ranks_are_near_each_other():
    found = scatter([layer("a", rank=1, nmse=0.5), layer("b", rank=4, nmse=0.0), layer("c", rank=None, nmse=None)])
    assert [dot.title for dot in found.dots] == ["a: rank 1, NMSE 0.5000", "b: rank 4, NMSE 0.0000"]
    assert [tick.label for tick in found.x_ticks] == ["0", "1", "2", "3", "4", "5"]
    left, right = found.x_ticks[0].at, found.x_ticks[-1].at
    assert [dot.x for dot in found.dots] == pytest.approx([left + (right - left) * r / 5 for r in (1, 4)], abs=0.1)
    assert [dot.y for dot in found.dots] == pytest.approx([found.y_ticks[-1].at, found.y_ticks[0].at])
    assert found.y_ticks[0].at > found.y_ticks[-1].at  # up is more
    assert scatter([layer("c", rank=None, nmse=None)]) is None


def test_scatter_is_logarithmic_where_they_are_not():
    found = scatter([layer("a", rank=2, nmse=0.5), layer("b", rank=96, nmse=0.1, components=64)])
    assert found.logarithmic and [dot.shared for dot in found.dots] == [False, True]
    assert [tick.label for tick in found.x_ticks] == ["2", "4", "8", "16", "32", "64"]
    assert [dot.x for dot in found.dots] == [found.x_ticks[0].at, found.x_ticks[-1].at]


def test_cells_of_a_heat_map():
    rows = ((0.0, 0.1, 0.8), (0.1, 0.0, 1.0), (0.8, 1.0, 0.0))
    found = heat_map(StoredMap("conv", 64, 60, (7, 2, 9), frozenset({7}), 0.5, rows))
    # from 0.1 to 1 in eight shades
    assert [(shade.level, shade.path) for shade in found.shades] == [
        (0, "M1 0h1v1h-1zM0 1h1v1h-1z"),
        (6, "M2 0h1v1h-1zM0 2h1v1h-1z"),
        (7, "M2 1h1v1h-1zM1 2h1v1h-1z"),
    ]
    assert [shade.title for shade in found.shades] == ["0.20 to 0.43", "1.55 to 1.78", "1.77 to 2.00"]
    assert [row.removed for row in found.rows] == [True, False, False]
    assert found.rows[0].title == "filter 7, removed: nearest to filter 2, at 0.20 of the average distance"
    assert heat_map(StoredMap("conv", 2, 1, (0, 1), frozenset(), 0.0, ((0.0, 0.0), (0.0, 0.0)))).rows[0].number == 0
