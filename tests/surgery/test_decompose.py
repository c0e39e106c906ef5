"""decompose_ on models: what is replaced, what is not and why, and that nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import DecompositionError, RecipeError, SurgeryError
from norton_plugin.recipe import Decomposition, Scope
from norton_plugin.surgery import decompose_, from_conv
from norton_plugin.surgery.untied import UntiedLayers


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, stride=2, padding=1, bias=False),
        dict(kernel_size=(1, 7), padding=(0, 3)),
        dict(kernel_size=(7, 1), padding=(3, 0)),
        dict(kernel_size=(3, 5), padding=(1, 2), stride=(1, 2), dilation=(2, 1)),
        dict(kernel_size=7, stride=2, padding=3),
        dict(kernel_size=3, padding=1, groups=2),
        dict(kernel_size=3, padding="same", padding_mode="reflect"),
    ],
)
def test_full_rank_reproduces_the_convolution(arguments):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, **arguments, dtype=torch.float64).eval()
    kh, kw = conv.kernel_size
    block = from_conv(conv, kh * kw)
    x = torch.randn(2, 8, 15, 17, dtype=torch.float64)
    torch.testing.assert_close(block(x), conv(x), rtol=1e-10, atol=1e-10)
    low = from_conv(conv, 1)
    assert (low(x) - conv(x)).abs().max() > 1e-2


def test_flags_dtype_and_mode_are_taken_over():
    conv = nn.Conv2d(4, 8, 3).to(torch.bfloat16).train()
    conv.weight.requires_grad_(False)
    block = from_conv(conv, 2)
    assert block.training and block.head.dtype == torch.bfloat16
    assert [p.requires_grad for p in (block.head, block.vertical, block.horizontal, block.bias)] == [False] * 3 + [True]
    assert torch.equal(block.bias, conv.bias)


def test_report_lists_every_convolution(residual):
    report = decompose_(residual, Decomposition(rank=3))
    assert [layer.names for layer in report.layers] == [
        ("layers.0.conv1",), ("layers.0.conv2",), ("layers.1.conv1",), ("layers.1.conv2",),
    ]  # fmt: skip
    assert [(s.name, s.reason) for s in report.skipped] == [
        ("stem", "rank 3 needs more MACs than the dense convolution (break-even rank 2)")
    ]
    assert all(0.0 < layer.nmse_mean <= layer.nmse_worst < 1.0 and layer.rank == 3 for layer in report.layers)
    assert isinstance(residual.layers[1].conv2, CPDBlock) and isinstance(residual.stem, nn.Conv2d)


def test_nmse_is_that_of_the_block(residual):
    weight = residual.layers[0].conv1.weight.detach().double()
    report = decompose_(residual, Decomposition(rank=2), scope=Scope(include=("layers.0.conv1",)))
    error = (residual.layers[0].conv1.weight - weight).flatten(1).square().sum(1) / weight.flatten(1).square().sum(1)
    assert report.layers[0].nmse_mean == pytest.approx(float(error.detach().mean()), rel=1e-5)
    assert report.layers[0].nmse_worst == pytest.approx(float(error.detach().max()), rel=1e-5)


def test_ranks_by_pattern_and_dearer_layers_on_demand(residual):
    chosen = Decomposition(rank=2, ranks={"layers.1": 4, "layers.1.conv2": None, "stem": 9}, allow_more_macs=True)
    report = decompose_(residual, chosen)
    assert {layer.names[0]: layer.rank for layer in report.layers} == {
        "stem": 9, "layers.0.conv1": 2, "layers.0.conv2": 2, "layers.1.conv1": 4,
    }  # fmt: skip
    assert report.layers[0].nmse_worst < 1e-12


def test_auto_takes_the_lowest_rank_that_reaches_the_target(residual):
    reference = copy.deepcopy(residual)
    report = decompose_(residual, Decomposition(rank="auto", target_nmse=0.25))
    assert report.layers
    for layer in report.layers:
        assert layer.nmse_mean <= 0.25
        below = copy.deepcopy(reference)
        if layer.rank > 1:
            lower = decompose_(below, Decomposition(rank=layer.rank - 1), scope=Scope(include=layer.names))
            assert lower.layers[0].nmse_mean > 0.25


def test_auto_leaves_a_layer_dense_that_cannot_reach_the_target(residual):
    with pytest.raises(SurgeryError, match="is above the target 1e-06"):
        decompose_(residual, Decomposition(rank="auto", target_nmse=1e-6))


def test_a_shared_module_is_replaced_once_in_every_parent(image):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
            self.second = nn.Sequential(nn.ReLU(), self.first[1])

        def forward(self, x):
            return self.second(self.first(x))

    net = Shared()
    report = decompose_(net, Decomposition(rank=2))
    assert net.first[1] is net.second[1] and isinstance(net.second[1], CPDBlock)
    assert ("first.1", "second.1") in [layer.names for layer in report.layers]
    assert net(image).shape == (2, 16, 8, 8)


def test_layers_that_are_tied_no_longer_are_told():
    first, second, up = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.ConvTranspose2d(16, 16, 3)
    second.weight = first.weight
    net = nn.Sequential(first, second, nn.Conv2d(16, 16, 3, bias=False), up)
    net[2].weight = up.weight
    report = decompose_(copy.deepcopy(net), Decomposition(rank=1, sweeps=3))
    assert report.untied == (UntiedLayers(("0", "1")), UntiedLayers(("2",), kept=("3",)))
    alone = decompose_(copy.deepcopy(net), Decomposition(rank=1, sweeps=3), scope=Scope(exclude=("1", "2")))
    assert alone.untied == (UntiedLayers(("0",), kept=("1",)),)
    apart = decompose_(net, Decomposition(rank=1, sweeps=3), scope=Scope(exclude=("0", "1", "2")), require=False)
    assert apart.untied == () and net[1].weight is net[0].weight


def test_what_cannot_be_replaced_is_listed_with_its_reason():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked = nn.Conv2d(8, 8, 3)
    hooked.register_forward_hook(lambda *_: None)
    net = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8), Odd(8, 8, 3),
        hooked, nn.ConvTranspose2d(8, 8, 3), nn.ConvTranspose1d(8, 8, 3),
    )  # fmt: skip
    report = decompose_(net, Decomposition(rank=2))
    reasons = {s.name: s.reason for s in report.skipped}
    assert [layer.names for layer in report.layers] == [("0",)]
    assert "1x1" in reasons["1"] and "depthwise" in reasons["2"] and "Odd computes" in reasons["3"]
    assert "hooks" in reasons["4"] and "not a 1-D, 2-D or 3-D" in reasons["5"] and "Transpose1d" in reasons["6"]


@pytest.mark.parametrize(
    ("decomposition", "scope", "error", "message"),
    [
        (Decomposition(rank=500), Scope(), SurgeryError, "rank 500 needs more MACs"),
        (Decomposition(rank=2), Scope(include=("backbone",)), RecipeError, "scope.include pattern 'backbone'"),
        (Decomposition(rank=2), Scope(exclude=("nothing.*",)), RecipeError, "'nothing.*' matches none"),
        (Decomposition(ranks={"conv9": 2}), Scope(), RecipeError, "decomposition.ranks pattern 'conv9'"),
        (Decomposition(rank=2), Scope(include=("head",)), SurgeryError, "outside the scope"),
    ],
)
def test_bad_requests_change_nothing(residual, decomposition, scope, error, message):
    before = copy.deepcopy(residual)
    with pytest.raises(error, match=message):
        decompose_(residual, decomposition, scope=scope)
    assert repr(residual) == repr(before)


def test_nan_weights_are_refused(residual):
    residual.layers[1].conv2.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(DecompositionError, match=r"layers.1.conv2 holds 1 values that are NaN"):
        decompose_(residual, Decomposition(rank=2))
    assert isinstance(residual.layers[0].conv1, nn.Conv2d)


def test_a_model_that_is_a_convolution_itself_is_refused():
    with pytest.raises(SurgeryError, match=r"nn.Sequential\(layer\)"):
        decompose_(nn.Conv2d(16, 16, 3), Decomposition(rank=2))
