"""Torch-Pruning on blocks of every level and on CPDLinear."""

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn

from norton_plugin.blocks import CPD_BLOCKS, CPDBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.channels import ChannelGraph
from norton_plugin.errors import SurgeryError
from norton_plugin.integrations.torch_pruning import (
    CPDBlockPruner,
    CPDLinearPruner,
    PABSImportance,
    SpatialSVDBlockPruner,
    criterion_of,
    pruner_options,
)
from norton_plugin.pabs import removal_order, vector_distance

LEVELS = {
    "filter": dict(rank=2),
    "cluster": dict(rank=2, clusters=3),
    "unequal clusters": dict(rank=2, clusters=4, cluster_size=6),
    "layer": dict(rank=5, clusters=1),
    "1x1": dict(rank=4, clusters=1, kernel_size=1, padding=0),
    "spatial": dict(rank=6),
}


def block(level):
    torch.manual_seed(0)
    kind = SpatialSVDBlock if level == "spatial" else CPDBlock
    made = kind(8, 12, **{"kernel_size": 3, "padding": 1, **LEVELS[level]}, dtype=torch.float64).eval()
    if level == "unequal clusters":
        made.slot = torch.tensor([0, 6, 1, 7, 12, 2, 18, 3, 13, 4, 5, 19])
    return made


@pytest.mark.parametrize("level", LEVELS)
def test_filters_and_channels_go_and_the_others_stay(level):
    layer, x = block(level), torch.randn(2, 8, 5, 5, dtype=torch.float64)
    x[:, [1, 6]] = 0
    kept = [0, 2, 3, 7, 8, 9, 10]
    expected = layer(x)[:, kept]
    pruner = SpatialSVDBlockPruner() if level == "spatial" else CPDBlockPruner()
    assert pruner.TARGET_MODULES is type(layer) and pruner.prune_out_channels(layer, [1, 4, 5, 6, 11]) is layer
    pruner.prune_in_channels(layer, [1, 6])
    assert (layer.in_channels, layer.out_channels) == (6, 7)
    torch.testing.assert_close(layer(x[:, [0, 2, 3, 4, 5, 7]]), expected, rtol=1e-10, atol=1e-12)


def test_a_linear_layer_loses_outputs_and_inputs():
    torch.manual_seed(0)
    layer, x, pruner = CPDLinear(6, 9, 4).double(), torch.randn(3, 6, dtype=torch.float64), CPDLinearPruner()
    x[:, 2] = 0
    expected = layer(x)[:, [1, 2, 3, 4, 5, 6, 7]]
    pruner.prune_out_channels(layer, [0, 8])
    pruner.prune_in_channels(layer, [2])
    assert (pruner.get_in_channels(layer), pruner.get_out_channels(layer)) == (5, 7)
    torch.testing.assert_close(layer(x[:, [0, 1, 3, 4, 5]]), expected, rtol=1e-10, atol=1e-12)
    for wrong in ([7], [-1], list(range(7))):
        with pytest.raises(SurgeryError, match="of the 7 of CPDLinear"):
            pruner.prune_out_channels(layer, wrong)


class Net(nn.Module):
    """A residual sum of two blocks, a CPDLinear behind it, and a Linear head."""

    def __init__(self, level):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = block(level).float()
        self.side = nn.Conv2d(8, 12, 1)
        self.hidden = CPDLinear(12, 10, 3)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        y = torch.relu(self.stem(x))
        y = torch.relu(self.body(y) + self.side(y)).mean((2, 3))
        return self.head(torch.relu(self.hidden(y)))


def net_of(level):
    torch.manual_seed(0)
    return Net(level).eval()


@pytest.mark.parametrize("level", LEVELS)
def test_a_pruner_halves_everything_and_computes_what_the_masked_network_does(level):
    net, masked, x = net_of(level), net_of(level), torch.randn(2, 3, 6, 6)
    arguments = {"importance": PABSImportance(), "pruning_ratio": 0.5, "ignored_layers": [net.head]}
    pruner = tp.pruner.BasePruner(net, x, **arguments, **pruner_options())
    removed = {}
    for group in pruner.step(interactive=True):
        removed[group[0].dep.target.module] = sorted(group[0].idxs)
        group.prune()
    assert (net.body.in_channels, net.body.out_channels, net.hidden.in_features) == (4, 6, 6)
    assert (net.hidden.out_features, net.head.in_features, net.side.out_channels) == (5, 5, 6)
    roots = {name: removed[module] for name, module in net.named_modules() if module in removed}
    assert len(roots) == 3
    gone = {"stem": roots["stem"], "hidden": roots["hidden"]}
    gone["sum"] = next(idxs for name, idxs in roots.items() if name in ("body", "side"))
    with torch.no_grad():
        y = torch.relu(masked.stem(x)).index_fill(1, torch.tensor(gone["stem"]), 0.0)
        y = torch.relu(masked.body(y) + masked.side(y)).index_fill(1, torch.tensor(gone["sum"]), 0.0).mean((2, 3))
        expected = masked.head(torch.relu(masked.hidden(y)).index_fill(1, torch.tensor(gone["hidden"]), 0.0))
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["body", "hidden"])
def test_importance_is_the_order_of_the_angles_between_the_rebuilt_filters(name):
    net, x = net_of("layer"), torch.randn(1, 3, 6, 6)
    net.side = nn.Identity()
    net.forward = lambda x: net.head(net.hidden(net.body(net.stem(x)).mean((2, 3))))
    graph = tp.DependencyGraph().build_dependency(net, x, customized_pruners=pruner_options()["customized_pruners"])
    layer = net.get_submodule(name)
    size = layer.weight.shape[0]
    group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, list(range(size)))
    order = removal_order(vector_distance(layer.weight.detach().flatten(1).double()))
    assert torch.equal(PABSImportance()(group).argsort(), order)


def test_importances_see_a_linear_layer_as_the_dense_one_it_equals():
    net, x = net_of("layer"), torch.randn(1, 3, 6, 6)
    dense = net_of("layer")
    dense.hidden = nn.Linear(12, 10)
    dense.hidden.weight.data, dense.hidden.bias.data = net.hidden.weight.detach(), net.hidden.bias.detach()
    for importance in (tp.importance.MagnitudeImportance(p=1), tp.importance.FPGMImportance()):
        ours, theirs = (
            {group.root: criterion_of(importance)(group) for group in ChannelGraph(model, x).groups()}
            for model in (net, dense)
        )
        assert ours.keys() == theirs.keys() and "hidden" in ours
        for root, scores in theirs.items():
            torch.testing.assert_close(ours[root], scores)


def test_importances_see_a_spatial_svd_as_the_convolution_it_equals():
    net, dense = net_of("spatial"), net_of("spatial")
    dense.body = nn.Conv2d(8, 12, 3, padding=1)
    dense.body.weight.data, dense.body.bias.data = net.body.weight.detach(), net.body.bias.detach()
    ours, theirs = (
        {group.root: criterion_of(tp.importance.FPGMImportance())(group) for group in groups}
        for groups in (ChannelGraph(model, torch.randn(1, 3, 6, 6)).groups() for model in (net, dense))
    )
    assert ours.keys() == theirs.keys() and "stem" in ours
    for root, scores in theirs.items():
        torch.testing.assert_close(ours[root], scores)


def test_the_pruners_of_all_blocks_are_among_the_options():
    pruners, kinds = pruner_options()["customized_pruners"], {*CPD_BLOCKS.values(), SpatialSVDBlock, CPDLinear}
    assert set(pruners) == kinds and all(issubclass(kind, type(p).TARGET_MODULES) for kind, p in pruners.items())
    assert kinds <= set(pruner_options()["root_module_types"])


@pytest.mark.parametrize("axes", [1, 3])
def test_a_pruner_halves_blocks_of_other_kernels(axes):
    """What a pruner keeps computes what the same filters computed before, with the others' channels zero."""
    torch.manual_seed(0)
    kind, x = CPD_BLOCKS[axes], torch.randn(2, 2, *(4, 5, 6)[-axes:])
    net = nn.Sequential(
        kind(2, 8, 3, 2, padding=1), nn.ReLU(), kind(8, 12, 3, 4, clusters=1), nn.ReLU(), kind(12, 3, 1, 1)
    )
    whole = copy.deepcopy(net.eval())
    pruner = tp.pruner.BasePruner(
        net, x, PABSImportance(), pruning_ratio=0.5, ignored_layers=[net[4]], **pruner_options()
    )
    pruner.step()
    assert [block.out_channels for block in net[::2]] == [4, 6, 3]
    for before, after, factor in ((whole[0], net[0], "head"), (whole[2], net[2], "mix")):
        rows = list(getattr(before, factor)[:, 0] if factor == "head" else before.bias[:, None])
        kept = getattr(after, factor)[:, 0] if factor == "head" else after.bias[:, None]
        names = [next(n for n, row in enumerate(rows) if torch.equal(row, own)) for own in kept]
        gone = [n for n in range(before.out_channels) if n not in names]
        getattr(before, factor).data[gone] = 0
        before.bias.data[gone] = 0
    torch.testing.assert_close(net(x), whole(x), rtol=1e-4, atol=1e-5)
