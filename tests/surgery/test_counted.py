"""Zeros and ones of a width that an attribute holds: they lose channels when the attribute does."""

import json

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import Recipe, compress
from norton_plugin.channels import ChannelGraph
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.structure import apply_structure_, diff

HALF = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 1}})


class Queries(nn.Module):
    """Queries that are zeros at first, as in DAB-DETR, take in what they read."""

    def __init__(self, start) -> None:
        super().__init__()
        self.embed_dims, self.count, self.start = 16, 5, start
        self.value, self.inner, self.back = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, memory: Tensor) -> Tensor:
        query = self.start(self, memory)
        query = query + self.value(memory).mean(1, keepdim=True)
        query = query + self.back(self.inner(query).relu())
        return self.head(query.tanh())


STARTS = {
    "new_zeros": lambda net, x: x.new_zeros(len(x), net.count, net.embed_dims),
    "zeros": lambda net, x: torch.zeros((len(x), net.count, net.embed_dims)),
    "ones": lambda net, x: torch.ones(len(x), net.count, net.embed_dims, device=x.device),
}


def build(start) -> Queries:
    torch.manual_seed(0)
    return Queries(start).eval()


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_trunk_is_pruned_and_the_attribute_renewed(start):
    """The oracle is the original without what layers read of the removed channels."""
    net, x = build(start), torch.randn(2, 7, 8)
    small, report = compress(net, x, HALF)
    assert report.status == "full" and report.largest_error < 1e-6
    assert (small.embed_dims, small.count, small.head.in_features) == (8, 5, 8)
    kept = [int((net.value.weight - row).norm(dim=1).argmin()) for row in small.value.weight]
    inner = [int((net.inner.weight[:, kept] - row).norm(dim=1).argmin()) for row in small.inner.weight]
    with torch.no_grad():
        net.head.weight[:, [i for i in range(16) if i not in kept]] = 0
        net.inner.weight[:, [i for i in range(16) if i not in kept]] = 0
        net.back.weight[:, [i for i in range(12) if i not in inner]] = 0
        torch.testing.assert_close(small(x), net(x), rtol=1e-5, atol=1e-5)
    rebuilt = build(start)
    apply_structure_(rebuilt, json.loads(json.dumps(diff(geometry(build(start)), geometry(small)))))
    rebuilt.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(x), small(x))


@pytest.mark.parametrize(
    "start",
    [
        lambda net, x: x.new_zeros(len(x), net.count, 16) + 0 * net.embed_dims,
        lambda net, x: torch.arange(16.0).expand(len(x), net.count, 16).clone(),
    ],
    ids=["an attribute that is a value too", "other numbers"],
)
def test_what_fits_no_other_width_keeps_it(start):
    graph = ChannelGraph(build(start), torch.randn(2, 7, 8))
    blocked = {group.root: group.blocked.code for group in graph.groups() if group.blocked}
    assert blocked["value"] in ("fixed-width-tensor", "width-as-value")


def test_a_width_written_into_the_code_keeps_the_channels():
    net = build(lambda net, x: x.new_zeros(len(x), net.count, 16))
    net.embed_dims = 99
    graph = ChannelGraph(net, torch.randn(2, 7, 8))
    blocked = {group.root: group.blocked.code for group in graph.groups() if group.blocked}
    assert blocked["value"] == "fixed-width-tensor"
