"""Models whose code hides something from a trace: what can be seen is pruned and proved right, the rest is listed."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from norton_plugin import Recipe, compress
from norton_plugin.channels import label_table
from norton_plugin.recipe import Decomposition, Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.report import WHOLE

HALF = Pruning(keep=0.5, round_to=1)


def stage(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
    )


class Net(nn.Module):
    """Two stages, a function between them, and a head."""

    def __init__(self, function):
        super().__init__()
        self.left, self.right, self.head = stage(3), stage(16), nn.Linear(16, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.right(self.function(self.left(x))).mean((2, 3)))


class Rounding(torch.autograd.Function):
    """Computes outside of torch."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.round(x.detach().numpy(), 1))

    @staticmethod
    def backward(ctx, grad):
        return grad


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    if bool(x.sum() > 0):
        x = x * 2
    return x.view(x.size(0), x.size(1), x.size(2), x.size(3))


@torch.inference_mode()
def without_autograd(x: Tensor) -> Tensor:
    return nn.functional.instance_norm(x)


def by_value(x: Tensor) -> Tensor:
    return 2 * x if x.mean().item() > 0 else x + 1


def in_place(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x.add_(1)


def of_fixed_width(x: Tensor) -> Tensor:
    return {16: x}[int(x.shape[1])]


INNER = ["left.0", "right.0", "right.3"]
EVERYTHING = ["left.0", "left.3", "right.0", "right.3"]


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("function", "pruned", "reason"),
    [
        (lambda x: torch.from_numpy(np.tanh(x.detach().numpy())), INNER, "not-consumed"),
        (lambda x: torch.tensor(x.tolist()), INNER, "not-consumed"),
        (Rounding.apply, INNER, "not-consumed"),
        (of_fixed_width, INNER, "breaks"),
        (lambda x: x.masked_scatter(x > 0, x[x > 0]), INNER, "by-position"),
        (lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]), EVERYTHING, None),
        (in_place, INNER, "by-position"),
        (lambda x: x[:, :, (x.mean((0, 1, 3)) > -10).nonzero().flatten()], EVERYTHING, None),
        (torch.func.vmap(torch.sin), EVERYTHING, None),
        (lambda x: scripted(x), EVERYTHING, None),
        (without_autograd, EVERYTHING, None),
        (by_value, EVERYTHING, None),
    ],
)
def test_layers_on_both_sides_are_pruned_and_verified(function, pruned, reason, image):
    torch.manual_seed(0)
    net = Net(function).eval().requires_grad_(False)  # tensors of inference mode meet no gradients
    compressed, report = compress(net, image, Recipe(pruning=HALF))
    assert [group.root for group in report.pruning.groups] == pruned
    assert report.largest_error < 1e-5 and report.status == ("full" if reason is None else "partial")
    reasons = {entry.name: entry.code for entry in report.pruning.skipped}
    assert ("left.3" not in reasons) if reason is None else (reasons["left.3"] == reason)
    assert compressed.left[0].out_channels == compressed.right[0].out_channels == 8
    with torch.no_grad():
        assert compressed(image).shape == (2, 4)


def test_a_whole_model_in_inference_mode(image):
    class Served(Net):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    report = prune_(Served(lambda x: x).eval(), image, HALF)
    assert [group.root for group in report.groups] == EVERYTHING
    assert all(group.error < 1e-6 for group in report.groups)


def test_a_scripted_stage_keeps_its_width(image):
    net = Net(lambda x: x).eval()
    net.right = torch.jit.script(net.right)
    report = prune_(net, image, HALF)
    assert [group.root for group in report.groups] == ["left.0"]
    assert {entry.name: entry.code for entry in report.skipped}["left.3"] == "fixed-width-layer"


def test_a_trace_that_would_not_end_is_given_up(image):
    def endless(x):
        stop = time.monotonic() + 1.0  # a model that runs, but whose every operation takes a trace long to follow
        while time.monotonic() < stop:
            x = x + 0.0
        return x

    start = time.monotonic()
    report = prune_(Net(endless).eval(), image, HALF, time_limit=0.5)
    assert time.monotonic() - start < 30
    assert [group.root for group in report.groups] == ["left.0", "right.0"]
    assert {entry.name: entry.code for entry in report.skipped}[WHOLE] == "trace-time"


def test_memory_of_a_trace_is_bounded(image, monkeypatch):
    """Unions are merged whenever this many have been noted down; the outcome is the same."""
    monkeypatch.setattr(label_table, "MAX_PENDING", 10)
    report = prune_(Net(lambda x: x).eval(), image, HALF)
    assert [group.root for group in report.groups] == EVERYTHING
    assert all(group.error < 1e-6 for group in report.groups)


def test_lazy_layers_and_single_channels(image):
    from norton_plugin.errors import SurgeryError

    with pytest.raises(SurgeryError, match="lazy layers"):
        compress(nn.Sequential(nn.LazyConv2d(8, 3)), image, Recipe(pruning=HALF))
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 1, 3), nn.Conv2d(1, 4, 1))
    recipe = Recipe(decomposition=Decomposition(rank=1, sweeps=3, restarts=1), pruning=HALF)
    _, report = compress(net, image, recipe)
    assert report.status == "full"
    assert {entry.name: entry.code for entry in report.pruning.skipped}["1"] == "single-channel"
