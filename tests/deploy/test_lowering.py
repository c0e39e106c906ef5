"""Lowered blocks are ordinary convolutions and compute the same."""

import pytest
import torch
from torch import nn

from norton_plugin.blocks import FORMS, CPDBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.deploy import lower_, lower_block
from norton_plugin.deploy.lowering import Pad
from norton_plugin.errors import SurgeryError

GEOMETRIES = {
    "3x3": dict(kernel_size=3, padding=1),
    "strided, rectangular": dict(kernel_size=(3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1)),
    "grouped, no bias": dict(kernel_size=3, padding=1, groups=3, bias=False),
    "reflect": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "same": dict(kernel_size=(4, 3), padding="same"),
    "dynamic same": dict(kernel_size=3, stride=2, padding="dynamic_same"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_form_lowers_to_convolutions_of_equal_output(name, form):
    torch.manual_seed(0)
    block = CPDBlock(6, 9, rank=2, **GEOMETRIES[name], dtype=torch.float64).eval()
    lowered = lower_block(block, form)
    x = torch.randn(2, 6, 12, 15, dtype=torch.float64)
    torch.testing.assert_close(lowered(x), block(x), rtol=1e-12, atol=1e-12)
    assert all(isinstance(m, nn.Conv2d | nn.Sequential | Pad) for m in lowered.modules())
    assert not lowered.training


@pytest.mark.parametrize(("form", "convolutions"), [("separable", 2), ("dense", 1)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_spatial_svd_lowers_to_its_two_convolutions_or_to_one(name, form, convolutions):
    torch.manual_seed(0)
    block = SpatialSVDBlock(6, 9, rank=4, **GEOMETRIES[name], dtype=torch.float64).eval()
    lowered, x = lower_block(block, form), torch.randn(2, 6, 12, 15, dtype=torch.float64)
    torch.testing.assert_close(lowered(x), block(x), rtol=1e-12, atol=1e-12)
    assert sum(isinstance(m, nn.Conv2d) for m in lowered.modules()) == convolutions
    assert all(isinstance(m, nn.Conv2d | nn.Sequential | Pad) for m in lowered.modules())
    assert not lowered.training and lowered.from_block
    with pytest.raises(SurgeryError, match="form 'grouped' is unknown"):
        lower_block(block, "grouped")


def test_the_own_form_is_the_default_and_weights_are_copies():
    block = CPDBlock(4, 4, 3, 2, form="dense")
    lowered = lower_block(block)
    assert isinstance(lowered, nn.Conv2d) and lowered.training
    torch.testing.assert_close(lowered.weight, block.weight)
    lowered.weight.data.zero_()
    assert block.weight.abs().sum() > 0


def test_models_are_lowered_once_per_shared_block():
    shared = CPDBlock(4, 4, 3, 2, padding=1, form="grouped")
    net = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared, CPDBlock(4, 2, 3, 1, form="separable")).eval()
    x = torch.randn(1, 4, 8, 8)
    expected = net(x)
    assert lower_(net) == 2
    assert net[0][0] is net[1] and not any(isinstance(m, CPDBlock) for m in net.modules())
    assert [len(net[1]), len(net[2])] == [2, 3]
    torch.testing.assert_close(net(x), expected)
    with pytest.raises(SurgeryError, match="no CPDBlock to lower"):
        lower_(net)
    with pytest.raises(SurgeryError, match="is itself a CPDBlock"):
        lower_(shared)


def test_a_block_with_two_names_in_one_module_is_lowered_under_both():
    net = nn.Sequential(CPDBlock(4, 4, 3, 2, padding=1)).eval()
    net.add_module("again", net[0])
    assert lower_(net) == 1 and net[1] is net[0] and not any(isinstance(m, CPDBlock) for m in net.modules())


def test_linear_layers_are_lowered_too():
    torch.manual_seed(0)
    net = nn.Sequential(CPDLinear(6, 9, 2), nn.ReLU(), CPDLinear(9, 4, 3, bias=False)).double().eval()
    x = torch.randn(2, 6, dtype=torch.float64)
    expected, dense = net(x), lower_block(net[0], "dense")
    torch.testing.assert_close(dense(x), net[0](x), rtol=1e-12, atol=1e-12)
    assert isinstance(dense, nn.Linear) and lower_(net) == 2
    assert [type(m) for m in net[0]] == [nn.Linear, nn.Linear] and net[0][0].bias is None is net[2][1].bias
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(SurgeryError, match="is itself a CPDLinear"):
        lower_(CPDLinear(2, 2, 1))


def test_small_weights_in_half_precision_stay():
    block = CPDBlock(2, 3, 3, 1, bias=False).half()
    for factor in block.factors:
        factor.data.fill_(0.025)  # 1.6e-5, below the smallest normal number of half precision
    [weight] = lower_block(block, "dense").parameters()
    assert torch.equal(weight, block.weight) and bool((weight > 0).all())


@pytest.mark.parametrize("form", ["dense", "grouped"])
def test_products_that_underflow_become_zero(form):
    block = CPDBlock(2, 3, 3, 1, bias=False)
    for factor in block.factors:
        factor.data.fill_(1.0)
    block.vertical.data[0], block.horizontal.data[0] = 1e-20, 1e-20  # 1e-40 is subnormal in single precision
    layer = lower_block(block, form)
    weights = [conv.weight for conv in layer.modules() if isinstance(conv, nn.Conv2d)]
    smallest = torch.finfo(torch.float32).tiny
    assert all(bool(((w == 0) | (w.abs() >= smallest)).all()) for w in weights)
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(layer(x)[:, 0], torch.zeros(1, 3, 3)) and torch.allclose(layer(x)[:, 1:], block(x)[:, 1:])
