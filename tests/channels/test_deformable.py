"""Deformable convolutions: filters are channels, offsets and modulation are places."""

import pytest
import torch
from labelled import follow, pinned, pixels
from torch import nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.report import blocking

ops = pytest.importorskip("torchvision.ops", reason="needs torchvision: pip install 'norton-plugin[timm]'")
PLACES = range(21, 39)


def deformable(channels, filters, groups=1):
    """Weight 3x3 with labels 1 .. filters, then those of its columns."""
    return ops.DeformConv2d(channels, filters, 3, padding=1, groups=groups, bias=False)


def offsets(runs=1):
    labels = list(range(21, 21 + 18 * runs))
    return torch.zeros(1, 18 * runs, 2, 2), torch.tensor(labels).view(1, -1, 1, 1).expand(1, 18 * runs, 2, 2)


def test_filters_are_followed_and_offsets_are_places():
    layer = deformable(2, 3)
    found = follow(layer, pixels(6, 7, size=2), offsets(), module=layer)
    assert found.maps == [[[[[1, 1], [1, 1]], [[2, 2], [2, 2]], [[3, 3], [3, 3]]]]]
    assert found.unions == [[4, 6], [5, 7]]
    assert found.pins == pinned("positions-or-heads", *PLACES)


def test_runs_with_offsets_of_their_own_lose_the_same_channels():
    layer = deformable(4, 2)
    found = follow(layer, pixels(7, 8, 9, 10, size=2), offsets(runs=2), module=layer)
    assert found.unions == [[3, 5, 7, 9], [4, 6, 8, 10]]


def test_offsets_from_which_a_fixed_grid_is_taken_are_places_too():
    layer = deformable(2, 3)
    grid = torch.arange(18.0).view(1, 18, 1, 1)
    found = follow(lambda x, y: layer(x, y - grid), pixels(6, 7, size=2), offsets(), module=layer)
    assert found.pins == pinned("positions-or-heads", *PLACES)


class Net(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.places = nn.Conv2d(8, 27, 3, padding=1)
        self.bend = ops.DeformConv2d(8, 12, 3, padding=1, groups=groups)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        offset, mask = self.places(x).split((18, 9), 1)
        return self.head(self.bend(x, offset, mask.sigmoid()).relu())


@pytest.mark.parametrize("groups", [1, 2])
def test_a_network_is_pruned_on_both_sides(image, groups):
    torch.manual_seed(0)
    net = Net(groups).eval()
    report = prune_(net, image, Pruning(keep=0.5, round_to=1))
    assert {group.root for group in report.groups} == {"stem", "bend"}
    assert report.largest_error < 1e-6 and not blocking(report.skipped)
    assert (net.bend.in_channels, net.bend.out_channels, net.bend.groups) == (4, 6, groups)
    assert net.bend.weight.shape == (6, 4 // groups, 3, 3) and net.places.out_channels == 27
    assert net.places.in_channels == 4 and net.head.in_channels == 6


def test_it_computes_what_the_kept_filters_compute(image):
    torch.manual_seed(0)
    net = Net(1).eval()
    x = net.stem(image).relu()
    offset, mask = net.places(x).split((18, 9), 1)
    kept = [0, 2, 3, 5, 6, 7, 8, 9, 10]
    y = ops.deform_conv2d(x, offset, net.bend.weight[kept], net.bend.bias[kept], padding=1, mask=mask.sigmoid()).relu()
    expected = nn.functional.conv2d(y, net.head.weight[:, kept], net.head.bias)
    ChannelGraph(net, image).prune("bend", [1, 4, 11])
    torch.testing.assert_close(net(image), expected)
