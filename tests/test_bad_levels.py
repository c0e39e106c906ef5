"""Levels that contradict each other or a layer: told before any work, with what came and what to do."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.pipeline import compress
from norton_plugin.recipe import Decomposition, Pruning, Recipe
from norton_plugin.surgery import decompose_, from_conv

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
QUICK = {"restarts": 1, "sweeps": 3}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"level": "filters"},
            "decomposition.level is 'filters'; expected one of filter, cluster, layer, spatial, auto",
        ),
        ({"level": None}, "decomposition.level is None"),
        ({"level": ["layer"]}, r"decomposition.level is \['layer'\]"),
        ({"components": 4}, "components is 4, the number that filters share, but .*level is 'filter'; set level to"),
        ({"level": "auto", "components": 4}, "level is 'auto'; set level to 'layer', 'cluster' or 'spatial'"),
        ({"level": "layer", "rank": 2, "components": 4}, "rank and decomposition.components contradict each other"),
        ({"level": "layer", "share": 0.5, "components": 4}, "components and decomposition.share contradict each"),
        ({"rank": "auto", "share": 0.5}, "rank and decomposition.share contradict each other; give one of them"),
        ({"level": "layer", "components": 0}, "components is 0; expected a whole number from 1 to"),
        ({"level": "layer", "components": 2**20 + 1}, "expected a whole number from 1 to 1048576"),
        ({"level": "layer", "components": 2.0}, "components is 2.0; expected a whole number"),
        ({"level": "layer", "components": True}, "components is True; expected a whole number"),
        ({"share": 0}, r"share is 0; expected a number in \(0, 1\]"),
        ({"share": 1.5}, "share is 1.5; expected a number"),
        ({"share": float("nan")}, "share is nan"),
        ({"share": "half"}, "share is 'half'"),
        ({"level": "cluster", "rank": 2}, "level is 'cluster', but decomposition.clusters is not given; say how many"),
        ({"level": "layer", "rank": 2, "clusters": 4}, "clusters is 4, but .*level is 'layer'; set level to 'cluster'"),
        ({"clusters": 4, "rank": 2}, "clusters is 4, but decomposition.level is 'filter'"),
        ({"level": "spatial", "rank": 2, "clusters": 4}, "clusters is 4, but .*level is 'spatial'; set level to 'clus"),
        ({"level": "spatial", "share": 0.5, "components": 4}, "components and decomposition.share contradict each"),
        ({"level": "spatial", "layers": {"0": {"clusters": 2, "rank": 1}}}, r"layers\['0'\].clusters is 2, but"),
        ({"level": "cluster", "rank": 2, "clusters": 0}, "clusters is 0; expected a whole number from 1"),
        ({"layers": {"0": {"levle": "layer"}}}, "levle.*level"),
        ({"layers": {"0": {"rank": 0}}}, r"layers\['0'\].rank is 0; expected a whole number"),
        (
            {"layers": {"0": {"components": 3}}},
            "components is 3, the number that filters share",
        ),
        ({"layers": {"0": {"level": "cluster", "rank": 2}}}, r"layers\['0'\].clusters is not given"),
        ({"layers": {"0": 3}}, r"layers\['0'\] is 3; expected a table"),
        ({"layers": [("0", {})]}, "decomposition.layers is .*; expected a table from layer patterns"),
        ({"level": "cluster", "ranks": {"0": 2}}, r"with decomposition.ranks\['0'\]: decomposition.level is 'cluster'"),
        ({"linear": 1}, "decomposition.linear is 1; expected true or false"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(RecipeError, match=message):
        Decomposition(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"level": "layer", "components": 109},  # the last convolution is exact at 16 * 3 * 3 = 144, the first at 27
            RecipeError,
            "109 components are asked for 0, which is exact at 27; lower decomposition.components, or give this layer",
        ),
        ({"layers": {"9": {"rank": 2}}}, RecipeError, "9"),
        (
            {"level": "cluster", "clusters": 17, "rank": 2},
            SurgeryError,
            "17 clusters are asked for, and it has 16 filters; 34 clusters are asked for, and it has 16 filters; "
            "17 clusters are asked for, and it has 12 filters",
        ),
        ({"level": "layer", "share": 1e-4}, SurgeryError, "takes 0.0.* of the dense layer's MACs, the share is 0.0001"),
        (
            {"level": "cluster", "clusters": 4, "components": 3},
            SurgeryError,
            "3 components are fewer than its 4 clusters, each of which needs one",
        ),
    ],
)
def test_what_no_layer_can_become_leaves_the_model_alone(settings, error, message):
    model = network()
    text, state = repr(model), copy.deepcopy(model.state_dict())
    for run in (
        lambda: decompose_(model, Decomposition(**settings, **QUICK)),
        lambda: compress(model, IMAGE, Recipe(decomposition=Decomposition(**settings, **QUICK))),
    ):
        with pytest.raises(error, match=message):
            run()
        assert repr(model) == text and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, RecipeError, "the rank of Conv2d is None; give from_conv a whole number, or components, or a share"),
        ({"level": "layer"}, RecipeError, "the rank of Conv2d is None"),
        ({"level": "layer", "rank": "auto"}, RecipeError, "the rank of Conv2d is 'auto'"),
        ({"rank": 2, "components": 3, "level": "layer"}, RecipeError, "contradict each other"),
        ({"level": "layer", "components": 55}, RecipeError, "55 components are asked for Conv2d, which is exact at 54"),
        ({"level": "spatial", "components": 99}, RecipeError, "99 components are asked for Conv2d, which is exact at"),
        ({"level": "spatial", "rank": 1, "clusters": 2}, RecipeError, "clusters is 2, but .*level is 'spatial'"),
        ({"level": "cluster", "rank": 1}, RecipeError, "clusters is not given"),
        (
            {"level": "cluster", "rank": 1, "clusters": 7},
            SurgeryError,
            "7 clusters are asked for, and it has 6 filters",
        ),
    ],
)
def test_one_convolution(settings, error, message):
    with pytest.raises(error, match=message):
        from_conv(nn.Conv2d(6, 6, 3), **settings)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.2, 0.1])
@pytest.mark.parametrize("clusters", [2, 5, 8])
def test_clusters_always_fit_what_pruning_leaves(keep, clusters):
    """A number of clusters above the filters that stay is no contradiction: empty clusters go."""
    settings = {"level": "cluster", "clusters": clusters, "rank": 2, "allow_more_macs": True, **QUICK}
    recipe = Recipe(decomposition=Decomposition(**settings), pruning=Pruning(keep=keep, round_to=1))
    small, report = compress(network(), IMAGE, recipe)
    blocks = [module for module in small.modules() if isinstance(module, CPDBlock)]
    assert len(blocks) == 3 and report.pruning.largest_error < 1e-4
    for block in blocks:
        assert block.clusters <= block.out_channels <= block.clusters * block.cluster_size
        assert block.clusters % block.groups == 0 and len(block.cluster) == block.out_channels
        if block.groups == 1:
            assert sorted(set(block.cluster.tolist())) == list(range(block.clusters))


def test_automatic_ranks_begin_where_a_level_begins():
    """Eight clusters of one filter each cost more than rank 1 per filter: the lowest rank is two there."""
    model = nn.Sequential(nn.Conv2d(16, 8, 3), nn.Conv2d(8, 8, 3))
    options = Decomposition(level="cluster", clusters=8, rank="auto", target_nmse=0.99, **QUICK)
    report = decompose_(model, options)
    assert [(layer.level, layer.clusters, layer.rank) for layer in report.layers] == [("cluster", 8, 1)] * 2
    assert not report.skipped
