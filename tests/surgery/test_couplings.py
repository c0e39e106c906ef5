"""Recurrent layers, shared weights, transposed depthwise layers and the largest channel of a map."""

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import Recipe, compress, load, save
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_

HALF = Pruning(keep=0.5, round_to=1)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def kept_inputs(new: Tensor, old: Tensor) -> list[int]:
    """Columns of the old weight that are in the new one, found by their values (all of them differ)."""
    old = old.flatten(2)[..., 0] if old.dim() > 2 else old
    new = new.flatten(2)[..., 0] if new.dim() > 2 else new
    return [int((old == value).nonzero()[0, 1]) for value in new[0]]


class Recurrent(nn.Module):
    """A convolution, then a recurrent layer over the rows of its map."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 16, 3, padding=1), layer, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.relu(self.conv(x)).mean(3).transpose(1, 2)
        return self.head(self.layer(rows)[0][:, -1])


@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (lambda: nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True), 24),
        (lambda: nn.LSTM(16, 12, batch_first=True, proj_size=5), 5),
        (lambda: nn.GRU(16, 12, batch_first=True), 12),
        (lambda: nn.RNN(16, 12, batch_first=True, bias=False), 12),
    ],
)
def test_what_a_recurrent_layer_reads_is_pruned_and_its_state_is_not(layer, width, image, tmp_path):
    torch.manual_seed(0)
    net = Recurrent(layer(), width).eval()
    flags = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    small, report = compress(net, image, Recipe(pruning=HALF))
    assert flags == (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled)
    assert [group.root for group in report.pruning.groups] == ["conv"] and report.status == "full"
    assert small.layer.input_size == small.conv.out_channels == 8 and small.layer.hidden_size == 12
    kept = kept_inputs(small.layer.weight_ih_l0, net.layer.weight_ih_l0)
    rebuilt = load(save(tmp_path / "small", small, report.structure), net)
    with torch.no_grad():
        for name, weight in net.layer.named_parameters():
            if name.startswith("weight_ih_l0"):
                assert torch.equal(dict(small.layer.named_parameters())[name], weight[:, kept])
                weight[:, [i for i in range(16) if i not in kept]] = 0
        torch.testing.assert_close(small(image), net(image), rtol=1e-5, atol=1e-6)
        assert torch.equal(rebuilt(image), small(image))


def test_a_single_step_leaves_the_state_whole():
    """One step ties nothing: the rows of a plain recurrent layer would seem free."""
    torch.manual_seed(0)
    net = Recurrent(nn.RNN(16, 12, batch_first=True), 12).eval()
    report = prune_(net, torch.randn(2, 3, 1, 8), HALF)
    assert [group.root for group in report.groups] == ["conv"]
    assert net.layer.weight_ih_l0.shape == (12, 8) and net.layer.weight_hh_l0.shape == (12, 12)
    with torch.no_grad():
        assert net(torch.randn(2, 3, 5, 8)).shape == (2, 4)


def test_cells_are_told_what_they_read(image):
    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.cell, self.head = nn.Conv2d(3, 16, 3), nn.LSTMCell(16, 12), nn.Linear(12, 4)

        def forward(self, x):
            state = None
            for step in self.conv(x).mean(3).permute(2, 0, 1):
                state = self.cell(step, state)
            return self.head(state[0])

    net = Cells().eval()
    report = prune_(net, image, HALF)
    assert [group.root for group in report.groups] == ["conv"] and report.groups[0].error < 1e-6
    assert net.cell.input_size == 8 and net.cell.weight_ih.shape == (48, 8)


class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's weight the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 1), nn.ConvTranspose2d(12, 16, 1)
        self.up.weight = self.down.weight
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.up(torch.tanh(self.down(x))))


def test_a_weight_shared_with_a_transposed_layer(image):
    torch.manual_seed(0)
    net = Tied().eval()
    small, report = compress(net, image, Recipe(pruning=HALF))
    assert [group.root for group in report.pruning.groups] == ["stem", "down"] and report.status == "full"
    assert small.up.weight is small.down.weight and small.down.weight.shape == (6, 8, 1, 1)
    assert (small.up.in_channels, small.up.out_channels) == (6, 8)
    wide = kept_inputs(small.head.weight, net.head.weight)
    narrow = [int((net.down.bias == value).nonzero()) for value in small.down.bias]
    with torch.no_grad():
        x = net.stem(image)[:, wide]
        weight = net.down.weight[narrow][:, wide]
        y = torch.tanh(nn.functional.conv2d(x, weight, net.down.bias[narrow]))
        x = x + nn.functional.conv_transpose2d(y, weight, net.up.bias[wide])
        expected = nn.functional.conv2d(x, net.head.weight[:, wide], net.head.bias)
        torch.testing.assert_close(small(image), expected, rtol=1e-5, atol=1e-6)


def test_a_transposed_depthwise_layer_passes_channels_on(image):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 16, 3, groups=16), nn.Conv2d(16, 4, 1)).eval()
    small, report = compress(net, image, Recipe(pruning=HALF))
    assert [group.root for group in report.pruning.groups] == ["0"] and report.status == "full"
    assert small[1].groups == small[1].in_channels == small[1].out_channels == 8
    kept = kept_inputs(small[2].weight, net[2].weight)
    with torch.no_grad():
        net[2].weight[:, [i for i in range(16) if i not in kept]] = 0
        torch.testing.assert_close(small(image), net(image), rtol=1e-5, atol=1e-6)


class Spatial(nn.Module):
    """Attention to places by the largest channel."""

    def __init__(self, largest) -> None:
        super().__init__()
        self.conv, self.gate, self.head, self.largest = (
            nn.Conv2d(3, 16, 3),
            nn.Conv2d(1, 1, 3, padding=1),
            nn.Conv2d(16, 4, 1),
            largest,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x * torch.sigmoid(self.gate(self.largest(x))))


@pytest.mark.parametrize(
    "largest",
    [
        lambda x: x.amax(1, keepdim=True),
        lambda x: x.max(1, keepdim=True)[0],
        lambda x: torch.max(x, 1)[0].unsqueeze(1),
        lambda x: -(-x).amin((1,))[:, None],
    ],
)
def test_the_largest_channel_is_that_of_the_kept_ones(largest, image):
    torch.manual_seed(0)
    net = Spatial(largest).eval()
    small, report = compress(net, image, Recipe(pruning=HALF))
    assert [group.root for group in report.pruning.groups] == ["conv"] and report.status == "full"
    kept = kept_inputs(small.head.weight, net.head.weight)
    with torch.no_grad():
        x = net.conv(image)[:, kept]
        expected = nn.functional.conv2d(
            x * torch.sigmoid(net.gate(x.max(1, keepdim=True).values)), net.head.weight[:, kept], net.head.bias
        )
        torch.testing.assert_close(small(image), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "largest",
    [
        lambda x: x.max(1, keepdim=True)[1].float(),
        lambda x: sum(part.float() for part in x.max(1, keepdim=True)),
        lambda x: x.argmax(1, keepdim=True).float(),
    ],
)
def test_channels_whose_numbers_are_used_stay(largest, image):
    report = prune_(Spatial(largest).eval(), image, HALF, require=False)
    assert not report.groups
    reason = {entry.name: entry.code for entry in report.skipped}["conv"]
    assert reason in ("by-number", "taken-over-channels")


def test_so_do_those_whose_numbers_are_returned(image):
    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.scores = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)

        def forward(self, x):
            return self.scores(self.stem(x)).max(1)

    net = Classes().eval()
    report = prune_(net, image, HALF)
    assert [group.root for group in report.groups] == ["stem"] and net.scores.out_channels == 8


def test_a_parametrized_layer_is_named(image):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)).eval()
    nn.utils.parametrizations.weight_norm(net[1])
    report = prune_(net, image, HALF, require=False)
    assert not report.groups
    assert {entry.name: entry.code for entry in report.skipped}["1"] == "parametrized"


class Biased(nn.Module):
    """Attention with a bias for each head that a small network computes from positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 32, 4, stride=4), nn.Linear(32, 96)
        self.bias = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
        self.register_buffer("places", torch.randn(4, 4, 2))
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(len(x), 4, 3, 4, -1).permute(2, 0, 3, 1, 4)
        scores = 0.3 * (q @ k.transpose(-2, -1)) + torch.sigmoid(self.bias(self.places)).permute(2, 0, 1)
        return self.head((scores.softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


def test_biases_of_heads_are_told_from_channels_of_fixed_width(image):
    torch.manual_seed(0)
    _, report = compress(Biased().eval(), image, Recipe(pruning=HALF))
    reasons = {entry.name: entry.code for entry in report.pruning.skipped}
    assert reasons["bias.2"] == "positions-or-heads"
    assert {"stem", "bias.0"} < {group.root for group in report.pruning.groups} and report.status == "full"


def test_a_map_whose_channels_had_to_stay_is_no_score(image):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(n, 16, 3, padding=1) for n in (3, 16, 16))
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.a(x).softmax(1) + self.b(x))

    report = prune_(Net().eval(), image, HALF)
    reasons = {entry.name: entry.code for entry in report.skipped}
    assert reasons["a"] == "taken-over-channels"
    assert reasons["b"] == "fixed-width-tensor"
