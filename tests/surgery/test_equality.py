"""Every block is held against the convolution it replaces."""

import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.recipe import Decomposition
from norton_plugin.surgery import decompose, decompose_, from_conv
from norton_plugin.surgery.contract import read_contract
from norton_plugin.surgery.equality import replacement_error


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, stride=2, padding=1, bias=False),
        dict(kernel_size=(1, 7), padding=(0, 3)),
        dict(kernel_size=(3, 5), padding=(1, 2), stride=(1, 2), dilation=(2, 1)),
        dict(kernel_size=3, padding=1, groups=2),
        dict(kernel_size=3, padding="same", padding_mode="reflect"),
        dict(kernel_size=31, padding=15),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_of_any_geometry_is_right(arguments, dtype):
    conv = nn.Conv2d(8, 12, **arguments).to(dtype)
    block = from_conv(conv, 1, restarts=1, sweeps=3)
    assert replacement_error(conv, block, read_contract(conv).weight, map_size=(57, 40)) < 1e-5


def stride(block):
    block.stride = (2, 2)


def padding(block):
    block.padding = (0, 0)


def mode(block):
    block.padding_mode = "circular"


def shift(block):
    block.bias.data += 0.1


@pytest.mark.parametrize("damage", [stride, padding, mode, shift])
def test_a_wrong_block_is_found_out(damage):
    conv = nn.Conv2d(8, 12, 3, padding=1)
    block = from_conv(conv, 2, restarts=1, sweeps=3)
    damage(block)
    assert replacement_error(conv, block, conv.weight.detach()) > 1e-2


def test_a_weight_that_was_read_wrongly_is_found_out():
    """The convolution itself is asked, not what is thought to be its weight."""

    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(x, weight, self.bias, padding=1)

    conv = Standardised(8, 12, 3, padding=1)
    block = CPDBlock(8, 12, 3, 2, padding=1)
    centred = conv.weight.detach() - conv.weight.detach().mean((1, 2, 3), keepdim=True)
    block.bias.data.copy_(conv.bias)
    assert replacement_error(conv, block, centred) < 1e-5
    assert replacement_error(conv, block, conv.weight.detach()) > 1e-2


def test_errors_and_cost_are_reported(residual):
    report = decompose_(residual, Decomposition(rank=2))
    assert report.verified and report.verify_seconds > 0
    assert 0 <= report.largest_error == max(layer.error for layer in report.layers) < 1e-5


def test_a_layer_that_differs_stays_and_is_listed(residual, monkeypatch):
    wrong = residual.layers[1].conv1
    weight = wrong.weight.detach().clone()
    make = decompose.block_from_contract

    def make_wrong(contract, layout, *, cluster_size, like):
        block = make(contract, layout, cluster_size=cluster_size, like=like)
        block.stride = (2, 2) if like is wrong else block.stride
        return block

    monkeypatch.setattr(decompose, "block_from_contract", make_wrong)
    report = decompose_(residual, Decomposition(rank=3))
    reasons = {entry.name: entry.code for entry in report.skipped}
    assert reasons["layers.1.conv1"] == "block-differs"
    assert residual.layers[1].conv1 is wrong and torch.equal(wrong.weight, weight)
    assert {layer.names[0] for layer in report.layers} == {"layers.0.conv1", "layers.0.conv2", "layers.1.conv2"}


def test_without_verification_nothing_is_compared(residual):
    report = decompose_(residual, Decomposition(rank=2), verify=False)
    assert not report.verified and report.largest_error is None and report.verify_seconds < 0.01
