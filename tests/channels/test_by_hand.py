"""Masked and pruned models against what plain PyTorch computes from the kept weights: no label is involved."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.channels import ChannelGraph

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def check(model: nn.Module, x: Tensor, selection, expected: Tensor) -> None:
    """The masked model and the pruned one, both against ``expected``; the dense one differs."""
    graph = ChannelGraph(model, x)
    with torch.no_grad():
        assert not torch.allclose(model(x), expected, rtol=1e-3, atol=1e-3)
        with graph.masked(selection):
            torch.testing.assert_close(model(x), expected)
        for root, gone in selection:
            graph.prune(root, gone)
        torch.testing.assert_close(model(x), expected)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@torch.no_grad()
def test_residual_batch_norm_and_concatenation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.inner, self.side = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
            self.head = nn.Linear(7, 2)

        def forward(self, image):
            x = self.norm(self.stem(image)).relu()
            y = x + self.inner(x)
            return self.head(torch.cat([self.side(y), y], 1).mean((2, 3)))

    net = Net().eval()
    net.norm.running_mean.normal_()
    net.norm.weight.uniform_(0.5, 2.0)
    keep, side = [1, 3], [0, 2]
    norm = net.norm
    x = F.conv2d(IMAGE, net.stem.weight[keep], net.stem.bias[keep], padding=1)
    x = F.batch_norm(x, norm.running_mean[keep], norm.running_var[keep], norm.weight[keep], norm.bias[keep]).relu()
    y = x + F.conv2d(x, net.inner.weight[keep][:, keep], net.inner.bias[keep])
    z = torch.cat([F.conv2d(y, net.side.weight[side][:, keep], net.side.bias[side]), y], 1).mean((2, 3))
    expected = F.linear(z, net.head.weight[:, [*side, *(3 + k for k in keep)]], net.head.bias)
    check(net, IMAGE, [("stem", [0, 2]), ("side", [1])], expected)


@torch.no_grad()
def test_a_convolution_in_two_groups_loses_the_same_channels_of_each():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    keep, filters = [0, 2, 3, 5], [1, 3]
    x = F.conv2d(IMAGE, net[0].weight[keep], net[0].bias[keep])
    x = F.conv2d(x, net[1].weight[filters][:, [0, 2]], net[1].bias[filters], groups=2)
    check(net, IMAGE, [("0", [1, 4]), ("1", [0, 2])], F.conv2d(x, net[2].weight[:, filters], net[2].bias))


@torch.no_grad()
def test_a_depthwise_convolution_passes_channels_on():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    keep = [0, 3]
    x = F.conv2d(IMAGE, net[0].weight[keep], net[0].bias[keep])
    x = F.conv2d(x, net[1].weight[keep], net[1].bias[keep], groups=2)
    check(net, IMAGE, [("0", [1, 2])], F.conv2d(x, net[2].weight[:, keep], net[2].bias))


@torch.no_grad()
def test_a_group_norm_of_two_groups():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1))
    nn.init.normal_(net[1].weight)
    keep = [0, 2, 3, 5]
    x = F.conv2d(IMAGE, net[0].weight[keep], net[0].bias[keep])
    x = F.group_norm(x, 2, net[1].weight[keep], net[1].bias[keep])
    check(net, IMAGE, [("0", [1, 4])], F.conv2d(x, net[2].weight[:, keep], net[2].bias))


@torch.no_grad()
def test_attention_keeps_the_scale_of_its_dense_heads():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(3, 24), nn.Linear(8, 2)

        def forward(self, x):
            b, n, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 2, -1).permute(2, 0, 3, 1, 4)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    net, x = Attention().eval(), torch.randn(2, 5, 3)
    kept = [0, 3]  # of the four channels of each head, in q, k and v alike
    rows = [part * 8 + head * 4 + i for part in range(3) for head in range(2) for i in kept]
    gone = [i for i in range(24) if i not in rows]
    q, k, v = F.linear(x, net.qkv.weight[rows], net.qkv.bias[rows]).view(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) / 4**0.5  # the width of a dense head, not of a pruned one
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = F.linear(y, net.proj.weight[:, [head * 4 + i for head in range(2) for i in kept]], net.proj.bias)
    check(net, x, [("qkv", gone)], expected)
