"""ChannelGraph on small networks, one for every way in which channels are moved about."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.channels import ChannelGraph

OUTPUTS = "model-output"


class Net(nn.Module):
    """Stem of 16 channels, something in between, a head that reads all."""

    def __init__(self, middle: nn.Module):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = middle
        self.head = nn.LazyConv2d(5, 1)
        self(torch.zeros(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(torch.relu(self.stem(x))))


class Function(nn.Module):
    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def shuffle(self, x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def gate(self, x):
    value, gate = self.expand(x).chunk(2, dim=1)
    return value * gate.sigmoid()


def shortcut_a(self, x):
    return F.pad(x[..., ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.conv(x)


def focus(self, x):
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def squeeze(self, x):
    return x * self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


def static_split(self, x):
    a, b = torch.split(x, [self.first, self.second], dim=1)
    return torch.cat([self.conv(a), b], 1)


def written(self, x):
    x = x.clone()
    x[:, : self.first] = self.conv(x[:, : self.first])
    return x


class Static(Function):
    def __init__(self, function):
        super().__init__(function, conv=nn.Conv2d(4, 4, 1))
        self.first, self.second = 4, 12


class Scaled(nn.Module):
    """A norm written out, with a bare (1, C, 1, 1) parameter, as EvoNorm and layer scale have it."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(1, 16, 1, 1) + 0.5)

    def forward(self, x):
        return self.gamma * (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-3).sqrt()


ALL = {"stem": (16, 8)}


@pytest.mark.parametrize(
    ("middle", "pruned"),
    [
        (lambda: nn.Sequential(nn.BatchNorm2d(16), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), ALL),
        (lambda: Function(shuffle), ALL),
        (lambda: Function(gate, expand=nn.Conv2d(16, 24, 1)), ALL | {"middle.expand": (24, 12)}),
        (lambda: Function(shortcut_a, conv=nn.Conv2d(16, 24, 3, 2, 1)), ALL),
        (lambda: Function(focus), ALL),
        (lambda: Function(squeeze, down=nn.Conv2d(16, 4, 1), up=nn.Conv2d(4, 16, 1)), ALL | {"middle.down": (4, 2)}),
        (lambda: Static(static_split), {"stem": (4, 2), "stem#2": (12, 6), "middle.conv": (4, 2)}),
        (lambda: Static(written), {"stem": (4, 2), "stem#2": (12, 6)}),
        (Scaled, ALL),
        (lambda: nn.GroupNorm(2, 16), ALL),
        (lambda: nn.GroupNorm(8, 16), ALL),
        (lambda: nn.Conv2d(16, 32, 3, groups=16), ALL),
        (lambda: nn.Conv2d(16, 32, 3, groups=8), ALL),
        (lambda: nn.Conv2d(16, 32, 3, groups=2), ALL | {"middle": (32, 16)}),
        (lambda: nn.Sequential(nn.Conv2d(16, 32, 1), nn.PixelShuffle(2)), ALL | {"middle.0": (32, 16)}),
        (lambda: nn.ConvTranspose2d(16, 12, 2, 2), ALL | {"middle": (12, 6)}),
        (lambda: nn.ConvTranspose2d(16, 16, 2, 2, groups=16), ALL),
        (lambda: CPDBlock(16, 12, 3, 2, padding=1), ALL | {"middle": (12, 6)}),
        (lambda: CPDBlock(16, 16, 3, 2, padding=1, groups=2), ALL | {"middle": (16, 8)}),
        (lambda: nn.Sequential(nn.Unfold(2), nn.Unflatten(2, (7, 7))), ALL),
    ],
)
def test_pruned_equals_masked(middle, pruned, halve):
    torch.manual_seed(0)
    net = Net(middle())
    x = torch.randn(2, 3, 8, 8)
    got, blocked, error = halve(net, x)
    assert error < 1e-5
    assert got == pruned and blocked["head"] == OUTPUTS


def test_padded_channels_pin_only_the_other_side(halve):
    torch.manual_seed(0)
    net = Net(Function(shortcut_a, conv=nn.Conv2d(16, 24, 3, 2, 1)))
    _, blocked, _ = halve(net, torch.randn(1, 3, 8, 8))
    assert blocked == {"middle.conv": "padded-position", "head": OUTPUTS}
    assert net.middle.conv.weight.shape[:2] == (16, 8) and net.stem.out_channels == 8


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda self, x: x.roll(3, 1), "over-channels"),
        (lambda self, x: x[:, [3, 1]], "by-position"),
        (lambda self, x: x * x.softmax(1), "taken-over-channels"),
        (lambda self, x: x + torch.arange(16.0).view(1, 16, 1, 1), "fixed-width-tensor"),
        (lambda self, x: x + float(x.shape[1]), "width-as-value"),
        (lambda self, x: torch.from_numpy(np.asarray(x.detach()) * 2), "unseen-code"),
        (lambda self, x: x.sort(1).values, "taken-over-channels"),
    ],
)
def test_what_cannot_lose_channels_is_pinned(function, reason):
    graph = ChannelGraph(Net(Function(function)), torch.randn(1, 3, 8, 8))
    blocked = {group.root: group.blocked for group in graph.groups()}
    assert blocked["stem"].code == reason


class Attention(nn.Module):
    """Fused q, k, v; the width of a head is an attribute."""

    def __init__(self, *, fused: bool, dynamic: bool):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = 4, 8, 8**-0.5
        self.fused, self.dynamic = fused, dynamic
        self.embed = nn.Linear(6, 32)
        self.qkv = nn.Linear(32, 96)
        self.proj = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        width = c // self.num_heads if self.dynamic else self.head_dim
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = width**-0.5 if self.dynamic else self.scale
            y = (q * scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(self.norm(x + self.proj(y.transpose(1, 2).reshape(b, n, c if self.dynamic else -1))).mean(1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_attention_keeps_its_heads_and_its_scale(fused, dynamic, halve):
    torch.manual_seed(0)
    model = Attention(fused=fused, dynamic=dynamic)
    pruned, blocked, error = halve(model, torch.randn(2, 5, 6))
    assert error < 1e-5 and blocked == {"head": OUTPUTS}
    # Where the code takes the inner width from the input's, both are one group; otherwise they are two.
    assert pruned == ({"embed": (32, 16)} if dynamic else {"embed": (32, 16), "qkv": (96, 48)})
    assert model.qkv.weight.shape == (48, 16) and model.head_dim == (8 if dynamic else 4)


def test_multihead_attention(halve):
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(6, 32), nn.Linear(32, 3)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x):
            x = self.embed(x)
            return self.head(x + self.attention(x, x, x, need_weights=False)[0])

    model = Model()
    pruned, _, error = halve(model, torch.randn(2, 5, 6))
    assert error < 1e-5 and pruned == {"embed": (32, 16)}
    assert model.attention.embed_dim == 16 and model.attention.head_dim == 4


@pytest.mark.parametrize(("root", "width", "embedding"), [("embed", 16, 16), ("attention.out_proj", 16, 32)])
def test_attention_of_learned_queries(root, width, embedding):
    """Nothing is added to its outputs: their width and the embedding's are two groups, right one without the other."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Linear(6, 32), nn.Linear(32, 3)
            self.queries = nn.Parameter(torch.randn(1, 2, 32))
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x):
            x = self.embed(x)
            return self.head(self.attention(self.queries.expand(len(x), -1, -1), x, x)[0])

    model, x = Model().eval(), torch.randn(2, 5, 6)
    graph = ChannelGraph(model, x)
    gone = range(1, 32, 2)
    with torch.no_grad(), graph.masked([(root, gone)]):
        expected = model(x)
    graph.prune(root, gone)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    assert graph.width(root) == width and model.attention.embed_dim == embedding


def test_groups_of_a_residual_network(residual, image):
    graph = ChannelGraph(residual, image)
    found = {g.root: (g.size, g.channel_groups, g.blocked and g.blocked.code) for g in graph.groups()}
    assert found == {
        "stem": (16, 1, None),
        "layers.0.conv1": (16, 1, None),
        "layers.1.conv1": (16, 1, None),
        "head": (10, 1, OUTPUTS),
    }
    stem = graph.groups()[0]
    assert {m.name for m in stem.producers} == {"stem", "layers.0.conv2", "layers.1.conv2"}
    assert {m.name for m in stem.consumers} == {"layers.0.conv1", "layers.1.conv1", "head"}
    members = graph.members_of("stem", [3, 5])
    assert {m.indices for m in members} == {(3, 5)} and all(m.roots == (3, 5) for m in members)
