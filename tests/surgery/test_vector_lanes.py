"""Layouts: how many components the request of a rank comes to at the shared levels."""

import pytest

from norton_plugin.recipe import LayerRequest
from norton_plugin.surgery.layouts import LayerShape, Layout, layouts_for


def components(width: int, rank: int, **request: object) -> int:
    shape = LayerShape(width, width, (3, 3), input_size=(28, 28), output_size=(28, 28))
    (layout,) = layouts_for(shape, LayerRequest(rank=rank, **request), name="conv", more_macs=False)
    assert shape.macs(layout) <= shape.macs(Layout("filter", None, rank))
    assert layout.components is not None
    return layout.components


@pytest.mark.parametrize(
    ("width", "rank", "expected"),
    [
        (64, 1, 32),  # 33 would fit
        (256, 2, 256),  # 258 would fit
        (256, 3, 384),  # 388 would fit
        (16, 1, 9),  # nothing to round down to
        (16, 2, 18),  # 16 would leave out 11 %
        (32, 3, 52),  # 48 would leave out 8 %
    ],
)
def test_components_fill_whole_lanes_where_few_are_lost(width, rank, expected):
    assert components(width, rank, level="layer") == expected


def test_components_of_all_clusters_together_fill_them():
    assert components(128, 1, level="cluster", clusters=4) == 96  # 100 would fit, 25 per cluster
    assert components(256, 3, level="cluster", clusters=4) == 608  # 616 would fit
    assert components(64, 1, level="cluster", clusters=4) == 52  # 48 would leave out 8 %


def test_components_and_shares_are_taken_as_they_are():
    shape = LayerShape(64, 64, (3, 3))
    (layout,) = layouts_for(shape, LayerRequest(components=33, level="layer"), name="conv", more_macs=False)
    assert layout.components == 33
    share = shape.macs(layout) / shape.dense_macs
    assert layouts_for(shape, LayerRequest(share=share, level="layer"), name="conv", more_macs=False) == (layout,)


def test_full_rank_stays_exact():
    shape = LayerShape(20, 2, (3, 3))
    (layout,) = layouts_for(shape, LayerRequest(rank=9, level="layer"), name="conv", more_macs=True)
    assert layout.components == shape.full_rank(1) == 18
