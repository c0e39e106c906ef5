"""Scales that the code computes by Python's own functions, which return numbers that remember no width."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import Recipe, compress
from norton_plugin.channels import ChannelGraph

HALF = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 1}})


class Scaled(nn.Module):
    """Two layers, and a function of what the first computes and of its width."""

    def __init__(self, function) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(3, 16), nn.Linear(16, 4), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(self.function(y, y.shape[1]))


class Conditional(nn.Module):
    """Attention as that of conditional DETR: content and position are added, or stand side by side in each head."""

    def __init__(self, beside: bool, heads: int = 2) -> None:
        super().__init__()
        self.content_q, self.place_q, self.content_k, self.place_k, self.v = (nn.Linear(8, 16) for _ in range(5))
        self.out, self.heads, self.beside = nn.Linear(16, 8), heads, beside

    def joined(self, content: Tensor, place: Tensor) -> Tensor:
        if not self.beside:
            return content + place
        parts = [(content + place).unflatten(2, (self.heads, -1)), place.unflatten(2, (self.heads, -1))]
        return torch.cat(parts, dim=3).flatten(2)

    def split(self, x: Tensor, width: int) -> Tensor:
        return x.view(*x.shape[:2], self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        q = self.joined(self.content_q(x), self.place_q(places))
        k = self.joined(self.content_k(x), self.place_k(places))
        v = self.v(x)
        scale = float(q.size(2) // self.heads) ** -0.5
        q, k = self.split(q * scale, q.size(2)), self.split(k, k.size(2))
        scores = (q @ k.transpose(2, 3)).softmax(-1)
        return self.out((scores @ self.split(v, v.size(2))).transpose(1, 2).flatten(2))


def kept_rows(small: Tensor, dense: Tensor, factor: float = 1.0) -> list[int]:
    """Which rows of a dense weight a pruned one has."""
    return [int((dense * factor - row).norm(dim=1).argmin()) for row in small]


@pytest.mark.parametrize(
    ("function", "factor"),
    [
        (lambda x, c: x * float(c) ** -0.5, 1 / 4),
        (lambda x, c: x / math.sqrt(c), 1 / 4),
        (lambda x, c: x / float(c), 1 / 16),
        (lambda x, c: float(c) * x, 16),
        (lambda x, c: x * (1 / math.sqrt(math.sqrt(c))), 1 / 2),
    ],
)
def test_scales_by_plain_numbers_keep_their_effect(function, factor):
    """The oracle is the original with the inputs of the second layer zeroed that are gone."""
    torch.manual_seed(0)
    net, x = Scaled(function).eval(), torch.randn(4, 3)
    small, report = compress(net, x, HALF)
    assert [group.root for group in report.pruning.groups] == ["a"] and report.largest_error < 1e-6
    kept = [int((net.b.weight[0] == value).nonzero()) for value in small.b.weight[0]]
    with torch.no_grad():
        expected = (factor * net.a(x))[:, kept] @ net.b.weight[:, kept].T + net.b.bias
        assert len(kept) == 8
        torch.testing.assert_close(small(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beside", [False, True])
def test_queries_of_several_layers_are_rescaled_together(beside):
    """The oracle is the original with the rows of queries and keys zeroed that are gone: its scale is the old one."""
    torch.manual_seed(0)
    net, inputs = Conditional(beside).eval(), (3 * torch.randn(2, 5, 8), torch.randn(2, 5, 8))
    small, report = compress(net, inputs, HALF)
    assert report.status == "full" and len(report.pruning.groups) == 2
    assert report.largest_error < 1e-6
    masked = copy.deepcopy(net)
    for query, key in (("content_q", "content_k"), ("place_q", "place_k")):
        kept = kept_rows(getattr(small, key).weight, getattr(net, key).weight)
        assert len(set(kept)) == 8
        for name in (query, key):
            layer = getattr(masked, name)
            gone = torch.tensor([i for i in range(16) if i not in kept])
            layer.weight.data[gone] = 0
            layer.bias.data[gone] = 0
        # Rows of the queries are multiplied by sqrt(new / old) width of a head.
        rows = getattr(small, query).weight
        torch.testing.assert_close(rows, getattr(net, query).weight[kept] * 0.5**0.5)
    kept = kept_rows(small.v.weight, net.v.weight)
    masked.v.weight.data[[i for i in range(16) if i not in kept]] = 0
    masked.v.bias.data[[i for i in range(16) if i not in kept]] = 0
    with torch.no_grad():
        torch.testing.assert_close(small(*inputs), masked(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, c: x + float(c) ** -0.5,
        lambda x, c: x * math.cos(c),
        lambda x, c: x * float(c) ** -0.5 + torch.full_like(x, float(c - 1)),
        lambda x, c: x * int(math.sqrt(c)) if c == 16 else x,
    ],
)
def test_numbers_that_are_not_found_again_keep_the_width(function):
    graph = ChannelGraph(Scaled(function).eval(), torch.randn(4, 3))
    assert {g.root: g.blocked.code for g in graph.groups() if g.blocked}["a"] == "width-as-value"


def test_numbers_of_other_modules_are_not_mistaken():
    class Four(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0.25

    net = Scaled(None).eval()
    net.function = lambda x, c: (Four()(x), float(c))[0]
    graph = ChannelGraph(net, torch.randn(4, 3))
    assert {g.root: g.blocked.code for g in graph.groups() if g.blocked}["a"] == "width-as-value"
