"""Two kernels that one Linear layer computes for each region (mmdet's DynamicConv, of Sparse R-CNN)."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.distances import folded_distance, group_distance
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.report import blocking
from norton_plugin.surgery.structure import apply_structure_, diff


class DynamicConv(nn.Module):
    """What mmdet's layer of this name holds and does."""

    def __init__(self, in_channels, feat_channels, out_channels):
        super().__init__()
        self.in_channels, self.feat_channels, self.out_channels = in_channels, feat_channels, out_channels
        self.num_params_in, self.num_params_out = in_channels * feat_channels, feat_channels * out_channels
        self.dynamic_layer = nn.Linear(in_channels, self.num_params_in + self.num_params_out)
        self.norm_in, self.norm_out = nn.LayerNorm(feat_channels), nn.LayerNorm(out_channels)

    def forward(self, param_feature, input_feature):
        regions = input_feature.flatten(2).permute(2, 0, 1).permute(1, 0, 2)
        parameters = self.dynamic_layer(param_feature)
        param_in = parameters[:, : self.num_params_in].view(-1, self.in_channels, self.feat_channels)
        param_out = parameters[:, -self.num_params_out :].view(-1, self.feat_channels, self.out_channels)
        features = torch.relu(self.norm_in(torch.bmm(regions, param_in)))
        return torch.relu(self.norm_out(torch.bmm(features, param_out)))


class Head(nn.Module):
    def __init__(self, inner, outputs):
        super().__init__()
        self.stem, self.dynamic = nn.Conv2d(3, 6, 1), DynamicConv(6, inner, outputs)
        self.last = nn.Linear(outputs, 5)

    def forward(self, image):
        maps = self.stem(image)
        return self.last(self.dynamic(maps.mean((2, 3)), maps)).mean(1)


SIZES = {"as many in as out": (4, 6), "other numbers in and out": (4, 9), "more between than around": (8, 6)}


def build(sizes):
    torch.manual_seed(0)
    net = Head(*sizes).double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net


@pytest.fixture
def image():
    return torch.randn(3, 3, 5, 5, dtype=torch.double, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_channels_between_the_kernels_go_with_all_rows_that_compute_them(image, sizes):
    inner, outputs = sizes
    net, kept = build(sizes), [0, 3]
    weight, bias = (tensor.detach().clone() for tensor in net.dynamic.dynamic_layer.parameters())
    reference = copy.deepcopy(net).dynamic
    graph = ChannelGraph(net, image)
    [group] = [group for group in graph.groups() if group.root == "dynamic.dynamic_layer"]
    assert group.blocked is None and group.size // group.channel_groups == inner
    gone = [f for f in range(inner) if f not in kept]
    graph.prune(group.root, [part * inner + f for part in range(group.channel_groups) for f in gone])
    dynamic = net.dynamic
    assert (dynamic.feat_channels, dynamic.in_channels, dynamic.out_channels) == (2, 6, outputs)
    assert (dynamic.num_params_in, dynamic.num_params_out) == (12, 2 * outputs)
    assert dynamic.dynamic_layer.out_features == 12 + 2 * outputs and dynamic.norm_in.normalized_shape == (2,)
    # The two kernels of each image, from the rows of the dense layer.
    maps = net.stem(image)
    computed = nn.functional.linear(maps.mean((2, 3)), weight, bias)
    first = computed[:, : 6 * inner].view(-1, 6, inner)[:, :, kept]
    second = computed[:, 6 * inner :].view(-1, inner, outputs)[:, kept]
    norm = reference.norm_in
    between = nn.functional.layer_norm(maps.flatten(2).mT @ first, (2,), norm.weight[kept], norm.bias[kept])
    expected = net.last(torch.relu(reference.norm_out(torch.relu(between) @ second))).mean(1)
    torch.testing.assert_close(net(image), expected)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_it_is_pruned_and_built_again(image, sizes):
    net = build(sizes)
    small = copy.deepcopy(net)
    report = prune_(small, image, Pruning(keep=0.5, round_to=1))
    assert report.largest_error < 1e-6
    assert "dynamic.dynamic_layer" in {group.root for group in report.groups}
    assert "dynamic.dynamic_layer" not in {entry.name for entry in blocking(report.skipped)}
    assert small.dynamic.feat_channels == sizes[0] // 2
    again = build(sizes)
    apply_structure_(again, diff(geometry(net), geometry(small)))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(image), small(image)) and geometry(again) == geometry(small)


def test_halves_of_other_channels_still_lose_the_same_ones(image):
    """Halves that hold each channel equally often need no union; all others do."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.last(x[:, :4] * x[:, -4:])

    net = Halves().double().eval()
    [group] = [group for group in ChannelGraph(net, image).groups() if group.root == "stem"]
    assert (group.size, group.channel_groups, group.blocked) == (8, 2, None)


def test_filters_of_many_parts_are_compared_as_one_vector(monkeypatch):
    torch.manual_seed(0)
    layer = nn.Linear(5, 12)  # three parts of four channels, in another order in each
    own, roots = list(range(12)), [0, 1, 2, 3, 5, 4, 7, 6, 8, 9, 10, 11]
    whole, _ = folded_distance([(layer, own, roots)], size=12, parts=3)
    pairs, _ = group_distance([(layer, own, roots)], size=12)
    torch.testing.assert_close(whole, sum(pairs[p : p + 4, p : p + 4] for p in (0, 4, 8)))
    monkeypatch.setattr("norton_plugin.surgery.distances._MOST_FILTERS", 8)
    found, _ = folded_distance([(layer, own, roots)], size=12, parts=3)
    rows = torch.stack([torch.cat([layer.weight[roots.index(p * 4 + c)] for p in range(3)]) for c in range(4)]).double()
    unit = nn.functional.normalize(rows.detach())
    angles = (unit @ unit.T).abs().clamp(max=1).arccos().fill_diagonal_(0)
    torch.testing.assert_close(found, angles / angles[~torch.eye(4, dtype=torch.bool)].mean())
