"""Positions that a softmax weighs, and places that a layer computes: their number is no width that could be pruned."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin import Recipe, compress

HALF = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 1}})
HEADS, POINTS, WIDTH = 2, 3, 8


class Deformable(nn.Module):
    """Attention as that of deformable DETR: each head reads the map at places that the queries say."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets, self.weights = nn.Linear(WIDTH, HEADS * POINTS * 2), nn.Linear(WIDTH, HEADS * POINTS)
        self.value, self.out = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        batch, count, _ = query.shape
        places = self.offsets(query).view(batch, count, HEADS, POINTS, 2).tanh()
        weights = self.weights(query).view(batch, count, HEADS, POINTS).softmax(-1)
        value = self.value(memory).view(batch, 16, HEADS, -1).flatten(2).transpose(1, 2)
        value = value.reshape(batch * HEADS, -1, 4, 4)
        read = F.grid_sample(value, places.transpose(1, 2).flatten(0, 1), align_corners=False)
        mixed = (read * weights.transpose(1, 2).reshape(batch * HEADS, 1, count, POINTS)).sum(-1)
        return self.out(mixed.view(batch, -1, count).transpose(1, 2))


class Outlook(nn.Module):
    """Attention whose weights a layer computes from the queries alone (VOLO)."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.value, self.out = nn.Linear(WIDTH, 5 * 6), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        weights = self.weights(query[:, :1]).view(len(query), 5, 6).softmax(-1)
        return self.out(torch.bmm(weights, self.value(memory[:, :6])))


class Assigned(nn.Module):
    """Every place is shared out among clusters: these are channels of what follows."""

    def __init__(self) -> None:
        super().__init__()
        self.clusters, self.value, self.out = nn.Linear(WIDTH, 6), nn.Linear(WIDTH, 16), nn.Linear(6, WIDTH)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        shares = self.clusters(memory).softmax(-1)
        return self.out((shares[..., None] * self.value(memory)[:, :, None, :]).sum((1, 3)))


@pytest.mark.parametrize(
    ("kind", "fixed"), [(Deformable, {"offsets", "weights"}), (Outlook, {"weights"})], ids=["deformable", "outlook"]
)
def test_positions_do_not_count_against_the_status(kind, fixed):
    torch.manual_seed(0)
    net, inputs = kind().eval(), (torch.randn(2, 5, WIDTH), torch.randn(2, 16, WIDTH))
    small, report = compress(net, inputs, HALF)
    codes = {entry.name: entry.code for entry in report.pruning.skipped}
    assert {name for name, code in codes.items() if code == "positions-or-heads"} == fixed
    assert report.status == "full" and small.value.out_features == 8
    kept = [int((net.value.weight - row).norm(dim=1).argmin()) for row in small.value.weight]
    gone = [i for i in range(16) if i not in kept]
    with torch.no_grad():
        net.value.weight[gone] = 0
        net.value.bias[gone] = 0
        torch.testing.assert_close(small(*inputs), net(*inputs), rtol=1e-4, atol=1e-5)


def test_a_softmax_that_numbers_no_positions_still_counts():
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, WIDTH), torch.randn(2, 16, WIDTH)
    _, report = compress(Assigned().eval(), inputs, HALF)
    codes = {entry.name: entry.code for entry in report.pruning.skipped}
    assert codes["clusters"] == "taken-over-channels" and report.status == "partial"
