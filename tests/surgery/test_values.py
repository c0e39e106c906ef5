"""Widths that the code computes with: pruning changes them, and with them what the model computes."""

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import Recipe, compress
from norton_plugin.channels.attributes import used_as_values
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import TOLERANCE
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_, surgeon

HALF = Pruning(keep=0.5, round_to=1)


class Attention(nn.Module):
    """Scores so small that a wrong scale hardly shows in the outputs."""

    def __init__(self, scale) -> None:
        super().__init__()
        self.stem, self.q, self.k, self.v = (nn.Conv2d(n, 32, 1) for n in (3, 32, 32, 32))
        self.heads, self.dim, self.scale = 2, 16, scale
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        q, k, v = (
            f(x).flatten(2).view(len(x), self.heads, self.dim, -1).transpose(2, 3) for f in (self.q, self.k, self.v)
        )
        scores = (self.scale(self, q) @ k.transpose(2, 3)).softmax(-1)
        return self.head((scores @ v).transpose(2, 3).flatten(1, 2).mean(-1))


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def pruned(net: nn.Module, image: Tensor) -> tuple[list[str], dict[str, str]]:
    report = prune_(net.eval(), image, HALF)
    return [group.root for group in report.groups], {entry.name: entry.code for entry in report.skipped}


@pytest.mark.parametrize(
    "scale",
    [
        lambda net, q: q * net.dim**-0.5,
        lambda net, q: q / net.dim**0.5,
        lambda net, q: q / (net.dim // 2),
        lambda net, q: q * (1 / net.dim),
        lambda net, q: q.mul(net.dim),
        lambda net, q: q * torch.tensor(net.dim),
        lambda net, q: q * float(net.dim),
        lambda net, q: net.dim * q,
        lambda net, q: 2 * net.dim**-1 * q,
    ],
)
def test_an_attribute_that_is_a_size_and_a_value_keeps_its_channels(scale, image):
    torch.manual_seed(0)
    net = Attention(scale)
    roots, reasons = pruned(net, image)
    assert roots == ["stem"]
    assert reasons["q"] == "width-as-value"
    assert net.dim == 16 and type(net.dim) is int


def test_one_that_is_a_size_alone_is_set_to_the_new_width(image):
    torch.manual_seed(0)
    net = Attention(lambda net, q: q * 0.25)
    roots, _ = pruned(net, image)
    assert roots == ["stem", "q"]  # the attribute keeps v as wide as q
    assert net.dim == 8 and net.q.out_channels == net.k.out_channels == 16


def test_attributes_come_back_as_they_were():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.size, self.value, self.both, self.sizes = 2, 3, 4, [2, 3]

    net = Net()
    x = torch.ones(2, 3)

    def run():
        assert int(x.view(net.size, net.value).sum() * net.value) == 18
        x.new_zeros(net.both).add_(net.both)
        x.view(*net.sizes)

    names = ["size", "value", "both", "sizes"]
    assert used_as_values(net, [(net, name) for name in names], run) == {(net, "value"), (net, "both")}
    assert [vars(net)[name] for name in names] == [2, 3, 4, [2, 3]]
    assert {type(vars(net)[name]) for name in names[:3]} == {int}
    # A model that does not run so says nothing, and is as it was, too.
    assert used_as_values(net, [(net, "size")], lambda: {int: 0}[type(net.size)]) == set()
    assert type(net.size) is int


class Scaled(nn.Module):
    """Two convolutions, and a function of what the first computes and of its width."""

    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(self.function(y, y.shape[1]))


@pytest.mark.parametrize(
    ("function", "factor"),
    [
        (lambda x, c: x / c, 1 / 16),
        (lambda x, c: x * c, 16),
        (lambda x, c: x * (2 / c), 2 / 16),
        (lambda x, c: x / c**0.5, 1 / 4),
        (lambda x, c: x * (c / 8), 2),
        (lambda x, c: x.div(2 * c), 1 / 32),
        (lambda x, c: c * x, 16),
        (lambda x, c: c * 0.5 * x, 8),
    ],
)
def test_scales_by_a_width_keep_their_effect(function, factor, image):
    """The oracle is the original with the inputs of the second layer zeroed that are gone."""
    torch.manual_seed(0)
    net = Scaled(function).eval()
    small, report = compress(net, image, Recipe(pruning=HALF))
    assert [group.root for group in report.pruning.groups] == ["a"] and report.largest_error < 1e-6
    kept = [int((net.b.weight[0, :, 0, 0] == value).nonzero()) for value in small.b.weight[0, :, 0, 0]]
    with torch.no_grad():
        y = factor * net.a(image)
        expected = nn.functional.conv2d(y[:, kept], net.b.weight[:, kept], net.b.bias)
        assert len(kept) == 8
        torch.testing.assert_close(small(image), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("function", [lambda x, c: x / (c + 1), lambda x, c: x * (c + 1) ** -0.5, lambda x, c: c - x])
def test_other_uses_of_a_width_keep_it(function, image):
    with pytest.raises(SurgeryError, match="its width enters a computed value"):
        prune_(Scaled(function).eval(), image, HALF)


def test_a_small_difference_has_to_vanish_in_double_precision(image, monkeypatch):
    """A mistake may hardly show on the example; rounding alone is gone in double precision."""

    class Hidden(nn.Module):
        def forward(self, x):
            return x * (1 + 8e-6 * len(x[0]))

    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 16, 3), Hidden(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)).eval()

    report = prune_(net(), image, HALF)
    assert [group.root for group in report.groups] == ["2"]
    reason = {entry.name: entry.reason for entry in report.skipped}["0"]
    assert reason.startswith("the pruned model differs from the masked one") and reason.endswith("(accepted: 1e-05)")
    monkeypatch.setattr(surgeon, "_SUSPICIOUS", TOLERANCE)
    errors = {group.root: group.error for group in prune_(net(), image, HALF).groups}
    assert 1e-5 < errors["0"] < 1e-4
