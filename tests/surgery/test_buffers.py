"""Buffers that no state dict holds: once some of their values are gone, an artefact has to say which stayed."""

import torch
from torch import nn

from norton_plugin import Recipe, compress, load, save
from norton_plugin.recipe import Pruning


class Offset(nn.Module):
    """Adds a table that its constructor computes and that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)
        self.register_buffer("table", torch.sin(torch.arange(16.0)).view(16, 1, 1), persistent=False)

    def forward(self, x):
        return self.b(self.a(x) + self.table)


class AtOutputs(nn.Module):
    """The same at the outputs, whose width stays."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv2d(16, 4, 3)
        self.register_buffer("table", torch.ones(4, 1, 1), persistent=False)

    def forward(self, x):
        return self.b(x) + self.table


def test_a_buffer_outside_of_the_state_dict_that_was_cut_comes_back(tmp_path):
    torch.manual_seed(0)
    image = torch.randn(2, 3, 8, 8)
    net = Offset().eval()
    small, report = compress(net, image, Recipe(pruning=Pruning(keep=0.5, round_to=1)))
    assert [group.root for group in report.pruning.groups] == ["a"] and small.table.shape == (8, 1, 1)
    kept = [int((net.a.bias == value).nonzero()) for value in small.a.bias]
    assert torch.equal(small.table, net.table[kept]) and "table" not in net.state_dict()
    rebuilt = load(save(tmp_path / "small", small, report.structure), Offset().eval())
    assert torch.equal(rebuilt.table, small.table)
    with torch.no_grad():
        assert torch.equal(rebuilt(image), small(image))
        # Once more, from the compressed model as the original.
        smaller, second = compress(small, image, Recipe(pruning=Pruning(keep=0.5, round_to=1)))
        again = load(save(tmp_path / "smaller", smaller, second.structure), rebuilt)
        assert smaller.table.shape == (4, 1, 1) and torch.equal(again(image), smaller(image))


def test_one_that_is_whole_stays_outside(tmp_path):
    small, report = compress(
        nn.Sequential(nn.Conv2d(3, 16, 3), AtOutputs()), torch.randn(1, 3, 8, 8), Recipe(pruning=Pruning(keep=0.5))
    )
    assert "1.table" not in small.state_dict() and report.structure["modules"]
