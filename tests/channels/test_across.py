"""ChannelGraph where operations run across channels, or along what only looks like channels."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.channels import ChannelGraph
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.report import blocking


class Gate(nn.Module):
    """Efficient channel attention: one kernel of three slides along the channels' means."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.mean((2, 3))[:, None])[:, 0].sigmoid()
        return x * y[:, :, None, None]


class Covariance(nn.Module):
    """Attention of channels to channels, as in XCiT; the width of a head is not kept."""

    def __init__(self, width: int = 16, heads: int = 2):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).mT).reshape(b, h * w, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        attention = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature).softmax(-1)
        return self.proj((attention @ v).permute(0, 3, 1, 2).flatten(2)).mT.reshape(b, -1, h, w)


def rotate_pairs(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)


def rotate_halves(x: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return torch.cat([-two, one], -1)


class Rotary(nn.Module):
    """Attention with rotary positions: cosines and sines belong to pairs of channels of a head."""

    def __init__(self, rotate):
        super().__init__()
        self.rotate = rotate
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)
        self.register_buffer("angles", torch.randn(64, 8))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).mT).reshape(b, h * w, 3, 2, -1).permute(2, 0, 3, 1, 4)
        q, k = (t * self.angles.cos() + self.rotate(t) * self.angles.sin() for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2)).mT.reshape(b, -1, h, w)


class Heads(nn.Module):
    """Three heads and three times the width of a head: both attributes that hold sizes change, and no other."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.total_dim, self.unrelated = 3, 8, 24, 8
        self.qkv = nn.Conv2d(16, 72, 1, bias=False)
        self.proj = nn.Conv2d(24, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, self.num_heads, 3 * self.head_dim, h * w).mT.chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.mT.reshape(b, self.total_dim, h, w))


class States(nn.Module):
    """A pointwise convolution over hidden states, which are channels that lie along the map."""

    def __init__(self):
        super().__init__()
        self.states = nn.Conv1d(16, 12, 1)
        self.mix = nn.Conv1d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2)
        states = self.states(y)
        return (self.mix(y @ states.mT) @ states).reshape_as(x)


class Net(nn.Module):
    """Stem, something in between, head."""

    def __init__(self, middle: nn.Module):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = middle
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(torch.relu(self.stem(x))))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("middle", "pruned"),
    [
        (Gate, {"stem": (16, 8)}),
        (Covariance, {"stem": (16, 8), "middle.qkv": (48, 24), "middle.proj": (16, 8)}),
        (lambda: Rotary(rotate_halves), {"stem": (16, 8), "middle.qkv": (48, 24), "middle.proj": (16, 8)}),
        (lambda: Rotary(rotate_pairs), {"stem": (16, 8), "middle.qkv": (48, 24), "middle.proj": (16, 8)}),
        (Heads, {"stem": (16, 8), "middle.qkv": (72, 36), "middle.proj": (16, 8)}),
        (States, {"stem": (16, 8), "middle.states": (12, 6), "middle.mix": (16, 8)}),
    ],
)
def test_pruned_equals_masked(middle, pruned, image, halve):
    torch.manual_seed(0)
    got, blocked, error = halve(Net(middle()), image)
    assert got == pruned and set(blocked) == {"head"} and error < 1e-5


def test_sizes_of_heads_follow(image, halve):
    torch.manual_seed(0)
    net = Net(Heads())
    halve(net, image)
    assert (net.middle.num_heads, net.middle.head_dim, net.middle.total_dim, net.middle.unrelated) == (3, 4, 12, 8)


def test_the_gate_of_the_smaller_layer_is_that_of_the_kept_channels(image):
    """By hand: the kernel slides along the means of the kept channels."""
    torch.manual_seed(0)
    net = Net(Gate()).eval()
    kept = [0, 3, 4, 9, 15]
    graph = ChannelGraph(net, image)
    gone = [i for i in range(16) if i not in kept]
    with torch.no_grad():
        x = torch.relu(net.stem(image))[:, kept]
        expected = F.conv2d(net.middle(x), net.head.weight[:, kept], net.head.bias)
        with graph.masked([("stem", gone)]):
            torch.testing.assert_close(net(image), expected)
        graph.prune("stem", gone)
        torch.testing.assert_close(net(image), expected)


def test_token_mixing_has_no_channels(image):
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            y = x.flatten(2)
            return (y * self.tokens(y)).reshape_as(x)

    report = prune_(Net(Mixer()).eval(), image, Pruning(keep=0.5))
    reasons = {entry.name: entry.code for entry in report.skipped}
    assert reasons["middle.tokens"] == "positions-or-heads"
    assert [group.root for group in report.groups] == ["stem"] and blocking(report.skipped) == []


def test_a_depthwise_transposed_convolution_passes_its_channels_on(image):
    net = Net(nn.ConvTranspose2d(16, 16, 3, padding=1, groups=16)).eval()
    report = prune_(net, image, Pruning(keep=0.5))
    assert [(group.root, group.after) for group in report.groups] == [("stem", 8)] and report.largest_error < 1e-5
    assert [entry.name for entry in report.skipped] == ["head"] and net.middle.groups == net.head.in_channels == 8


class Biased(nn.Module):
    """Attention of four heads whose scores get a bias for each head, made from the places by two layers."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Conv2d(16, 48, 1), nn.Conv2d(16, 16, 1)
        self.bias = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, 4, -1, h * w).unbind(1)
        places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).view(-1, 2)
        bias = self.bias((places[:, None] - places).float()).permute(2, 0, 1)
        scores = F.normalize(q, dim=2).transpose(-2, -1) @ F.normalize(k, dim=2) + bias
        return self.proj((v @ scores.softmax(-1).transpose(-2, -1)).reshape(b, -1, h, w))


def test_a_bias_of_the_scores_has_as_many_outputs_as_heads(image, halve):
    torch.manual_seed(0)
    pruned, blocked, error = halve(Net(Biased()), image)
    assert blocked["middle.bias.2"] == "positions-or-heads" and len(blocked) == 2
    assert pruned["middle.bias.0"] == (12, 6) and pruned["middle.qkv"] == (48, 24) and error < 1e-5


class Levels(nn.Module):
    """Two layers fill the rows of one tensor, as boxes are pooled from the levels of a pyramid."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(16, 12, 1), nn.Conv2d(16, 12, 1)
        self.read = nn.Conv2d(12, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(x)
        pooled = torch.zeros(2 * len(x), fine.shape[1], *fine.shape[2:])
        for level, rows in enumerate((fine, coarse, fine[:0])):
            pooled[torch.where(torch.arange(2 * len(x)) % 2 + 10 * (len(rows) == 0) == level)[0]] = rows
        return self.read(pooled)


@pytest.mark.parametrize("count", [1, 2])
def test_rows_written_into_a_tensor_bring_their_channels(image, halve, count):
    """A single row is written by PyTorch without the dimension that numbers it."""
    torch.manual_seed(0)
    net, image = Net(Levels()), image[:1].expand(count, -1, -1, -1)
    pruned, blocked, error = halve(net, image)
    assert pruned == {"stem": (16, 8), "middle.fine": (12, 6), "middle.read": (16, 8)} and error < 1e-5
    assert net.middle.coarse.out_channels == net.middle.read.in_channels == 6 and set(blocked) == {"head"}
