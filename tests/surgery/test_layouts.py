"""What a layer may become: exact MACs against the counter, break-even, and sizes that never cost more than asked."""

import itertools

import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.cost import count_cost
from norton_plugin.cpd import full_components
from norton_plugin.errors import RecipeError
from norton_plugin.reasons import Cause
from norton_plugin.recipe import LayerRequest
from norton_plugin.surgery.layouts import LayerShape, Layout, highest_layouts, layouts_for

SHAPES = {
    "stride 1": (dict(in_channels=12, out_channels=20, kernel_size=3, padding=1), (10, 8)),
    "stride 2": (dict(in_channels=12, out_channels=20, kernel_size=3, padding=1, stride=2), (11, 8)),
    "rectangular": (dict(in_channels=12, out_channels=20, kernel_size=(1, 5), padding=(0, 2), stride=(2, 1)), (9, 9)),
    "grouped": (dict(in_channels=12, out_channels=20, kernel_size=3, padding=1, groups=2), (10, 8)),
    "valid": (dict(in_channels=5, out_channels=7, kernel_size=3), (10, 8)),
    "1x1": (dict(in_channels=12, out_channels=20, kernel_size=1), (10, 8)),
    "1x1 stride 2": (dict(in_channels=12, out_channels=20, kernel_size=1, stride=2), (10, 8)),
}


def shape_of(name):
    arguments, size = SHAPES[name]
    conv = nn.Conv2d(**arguments)
    output = conv(torch.zeros(1, conv.in_channels, *size))
    shape = LayerShape(
        conv.out_channels, conv.in_channels // conv.groups, conv.kernel_size, conv.groups, size, output.shape[2:]
    )
    return shape, arguments, size


def counted(module, *size):
    x = torch.zeros(1, *size)
    return count_cost(module, lambda: module(x)).macs


def block_of(arguments, layout, rank):
    if layout.level == "spatial":
        return SpatialSVDBlock(**arguments, rank=rank)
    return CPDBlock(**arguments, rank=rank, clusters=layout.clusters)


def layouts(shape):
    """Every level that the shape has, at a few ranks."""
    kinds = [("layer", shape.groups), *(("cluster", shape.groups * k) for k in (2, 3))]
    kinds += [] if shape.pointwise else [("filter", None), ("spatial", shape.groups)]
    return [Layout(level, k, rank) for (level, k), rank in itertools.product(kinds, (1, 2, 5))]


@pytest.mark.parametrize("name", SHAPES)
def test_macs_are_those_that_the_counter_counts(name):
    shape, arguments, size = shape_of(name)
    assert shape.dense_macs == counted(nn.Conv2d(**arguments), arguments["in_channels"], *size)
    seen = set()
    for layout in layouts(shape):
        block = block_of(arguments, layout, layout.rank)
        assert shape.macs(layout) == counted(block, arguments["in_channels"], *size), layout
        seen.add(shape.macs(layout))
    assert len(seen) > 6


def test_macs_of_a_linear_layer():
    shape = LayerShape(20, 12, (1, 1))
    assert shape.dense_macs == counted(nn.Linear(12, 20), 12) == 240
    assert shape.macs(Layout("layer", 1, 4)) == counted(CPDLinear(12, 20, 4), 12) == 4 * 32


def test_at_stride_two_the_pointwise_step_sees_the_whole_map_and_the_mix_does_not():
    shape = LayerShape(64, 64, (3, 3), 1, (8, 8), (4, 4))
    assert shape.macs(Layout("filter", None, 1)) == 64 * (64 * 64 + 3 * 4 * 8 + 3 * 16)
    assert shape.macs(Layout("layer", 1, 1)) == 64 * 64 + 3 * 4 * 8 + 3 * 16 + 64 * 16
    assert shape.macs(Layout("cluster", 4, 1)) == 4 * (64 * 64 + 3 * 4 * 8 + 3 * 16) + 64 * 16


@pytest.mark.parametrize("name", SHAPES)
def test_the_highest_layout_of_a_level_saves_and_the_next_does_not(name):
    shape, arguments, size = shape_of(name)
    found = 0
    for level in ("filter", "cluster", "layer", "spatial"):
        request = LayerRequest(level=level, clusters=2 if level == "cluster" else None)
        for layout in highest_layouts(shape, request):
            channels = arguments["in_channels"]
            full = shape.full_rank(layout.clusters, spatial=layout.level == "spatial")
            here, above = (
                counted(block_of(arguments, layout, rank), channels, *size) for rank in (layout.rank, layout.rank + 1)
            )
            assert here < shape.dense_macs
            assert above >= shape.dense_macs or layout.rank == full
            found += 1
    assert found >= (1 if shape.pointwise else 3)


def test_break_even_at_known_sizes():
    """64 channels, 3x3, stride 1: R (64 + 6) < 576 per filter; M (64 + 6 + 64) < 36864 in the layer."""
    shape = LayerShape(64, 64, (3, 3))
    ranks = {layout.level: layout.rank for layout in highest_layouts(shape, LayerRequest(level="auto", clusters=8))}
    assert ranks == {"filter": 8, "layer": 275, "cluster": (64 * 576 - 1) // (8 * 70 + 64), "spatial": 95}
    strided = LayerShape(64, 64, (3, 3), 1, (2, 2), (1, 1))
    ranks = {layout.level: layout.rank for layout in highest_layouts(strided, LayerRequest(level="auto", clusters=8))}
    assert ranks["filter"] == 2 and ranks["layer"] == (64 * 576 - 1) // (256 + 6 + 3 + 64)
    assert ranks["spatial"] == (64 * 576 - 1) // (2 * 192 + 192) == 63


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", SHAPES)
def test_a_share_is_met_and_one_component_more_would_exceed_it(name, share):
    shape, _, _ = shape_of(name)
    request = LayerRequest(level="auto", clusters=2, share=share)
    found = layouts_for(shape, request, name="x", more_macs=False)
    if isinstance(found, Cause):
        assert (
            found.code == "share-too-small" and shape.macs(Layout("layer", shape.groups, 1)) > share * shape.dense_macs
        )
        return
    for layout in found:
        more = Layout(layout.level, layout.clusters, layout.rank + 1)
        full = shape.full_rank(layout.clusters, spatial=layout.level == "spatial")
        assert shape.macs(layout) <= share * shape.dense_macs
        assert shape.macs(more) > share * shape.dense_macs or layout.rank == full


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("size", [((16, 16), (16, 16)), ((16, 16), (8, 8))])
@pytest.mark.parametrize("filters", [16, 48, 100])
def test_no_level_costs_more_than_the_filter_level_at_the_same_rank(filters, size, rank):
    shape = LayerShape(filters, 32, (3, 3), 1, *size)
    found = layouts_for(shape, LayerRequest(level="auto", clusters=4, rank=rank), name="x", more_macs=True)
    limit = shape.macs(Layout("filter", None, rank))
    assert [layout.level for layout in found] == ["filter", "cluster", "layer", "spatial"]
    for layout in found[1:]:
        more = Layout(layout.level, layout.clusters, int(1.08 * layout.rank) + 1)  # a few may go to fill vector lanes
        spatial = layout.level == "spatial"
        assert shape.macs(layout) <= limit
        assert shape.macs(more) > limit or layout.rank == shape.full_rank(layout.clusters, spatial=spatial)
        assert layout.components == layout.clusters * layout.rank > filters * rank // (12 if spatial else 4)
    assert found[0].rank == rank and found[0].components is None


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (LayerRequest(rank=9), "rank-too-high"),
        (LayerRequest(level="layer", rank=9), "rank-too-high"),
        (LayerRequest(level="layer", components=50), None),
        (LayerRequest(level="layer", components=93), "too-many-components"),
        (LayerRequest(level="cluster", clusters=4, components=3), "too-few-components"),
        (LayerRequest(level="cluster", clusters=33, rank=1), "too-many-clusters"),
        (LayerRequest(level="layer", share=1e-4), "share-too-small"),
        (LayerRequest(level="spatial", components=31), None),
        (LayerRequest(level="spatial", components=32), "too-many-components"),
        (LayerRequest(level="spatial", share=0.03), "share-too-small"),
        (LayerRequest(level="spatial", rank=7), "rank-too-high"),
    ],
)
def test_reasons_to_leave_a_layer(request_, code):
    """32 filters of 16 channels: break-even is 4608 / (16 + 6 + 32) = 85 components, rank 144 / 22 = 6; spatially
    4608 / (48 + 96) = 32 components cost as much."""
    found = layouts_for(LayerShape(32, 16, (3, 3)), request_, name="x", more_macs=False)
    assert (found.code if isinstance(found, Cause) else None) == code


def test_more_macs_are_allowed_where_they_are_asked_for():
    request = LayerRequest(level="layer", components=93)
    assert layouts_for(LayerShape(32, 16, (3, 3)), request, name="x", more_macs=True) == (Layout("layer", 1, 93),)


def test_more_components_than_make_the_layer_exact_are_an_error():
    shape = LayerShape(32, 16, (3, 3))
    assert shape.full_rank(1) == full_components(32, 16, (3, 3)) == 144
    with pytest.raises(RecipeError, match=r"145 components are asked for stem, which is exact at 144; lower decompo"):
        layouts_for(shape, LayerRequest(level="layer", components=145), name="stem", more_macs=True)
    request = LayerRequest(level="cluster", clusters=4, components=41)
    with pytest.raises(RecipeError, match="exact at 40"):  # 1x1: at most 10 per cluster of ten filters
        layouts_for(LayerShape(40, 64, (1, 1)), request, name="x", more_macs=True)


def test_a_spatial_svd_of_a_strided_layer_and_of_groups():
    """The vertical convolution takes the vertical stride: it sees half of the map, the horizontal one a quarter."""
    shape = LayerShape(32, 16, (3, 5), 1, (8, 8), (4, 4))
    assert shape.macs(Layout("spatial", 1, 7)) == 7 * 16 * 3 * 4 * 8 + 32 * 7 * 5 * 16
    grouped = LayerShape(32, 4, (3, 3), 4)
    assert grouped.macs(Layout("spatial", 4, 2)) == 8 * 4 * 3 + 32 * 2 * 3
    assert grouped.full_rank(4, spatial=True) == min(4 * 3, 8 * 3)


@pytest.mark.parametrize(
    ("request_", "level"),
    [(LayerRequest(level="spatial", share=0.5), "layer"), (LayerRequest(level="spatial", components=8), "layer")],
)
def test_a_kernel_of_one_pixel_has_no_spatial_svd_of_its_own(request_, level):
    shape = LayerShape(32, 16, (1, 1))
    assert [layout.level for layout in layouts_for(shape, request_, name="x", more_macs=False)] == [level]
    auto = layouts_for(shape, LayerRequest(level="auto", share=0.5), name="x", more_macs=False)
    assert [layout.level for layout in auto] == ["layer"]


def test_more_components_than_make_a_spatial_svd_exact_are_an_error():
    shape = LayerShape(32, 16, (3, 3))
    with pytest.raises(RecipeError, match="49 components are asked for stem, which is exact at 48"):
        layouts_for(shape, LayerRequest(level="spatial", components=49), name="stem", more_macs=True)
