"""Tools that take a block for a plain layer and assign to it: torch's own fusion of BatchNorms."""

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from norton_plugin.blocks import CPDBlock, CPDLinear

LEVELS = {"filter": {}, "layer": {"clusters": 1}, "cluster": {"clusters": 2}, "grouped": {"groups": 2}}


def trained_norm(norm):
    torch.manual_seed(1)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm.eval()


@pytest.mark.parametrize("settings", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("bias", [True, False])
def test_torchs_own_fusion_folds_a_norm_into_a_block(settings, bias):
    torch.manual_seed(0)
    block = CPDBlock(8, 12, 3, 2, padding=1, bias=bias, **settings).eval()
    norm, x = trained_norm(nn.BatchNorm2d(12)), torch.randn(2, 8, 6, 6)
    before = block.weight.clone()
    fused = fuse_conv_bn_eval(block, norm)
    assert isinstance(fused, CPDBlock) and torch.equal(block.weight, before)  # a copy is fused
    assert not torch.allclose(fused(x), block(x), atol=1e-2)
    assert torch.allclose(fused(x), norm(block(x)), atol=1e-5)


def test_and_into_a_linear_layer():
    torch.manual_seed(0)
    layer, norm, x = CPDLinear(8, 6, 3).eval(), trained_norm(nn.BatchNorm1d(6)), torch.randn(4, 8)
    assert torch.allclose(fuse_linear_bn_eval(layer, norm)(x), norm(layer(x)), atol=1e-5)


def test_a_norm_that_silences_a_filter_and_a_filter_of_zeros():
    torch.manual_seed(0)
    block = CPDBlock(4, 6, 3, 2).eval()
    norm, x = trained_norm(nn.BatchNorm2d(6)), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        norm.weight[0] = 0
        block.head[1] = 0
    assert torch.allclose(fuse_conv_bn_eval(block, norm)(x), norm(block(x)), atol=1e-5)


@pytest.mark.parametrize("weight", [torch.randn(6, 4, 3, 3), torch.randn(6, 4, 1, 1)])
def test_any_other_weight_is_refused(weight):
    torch.manual_seed(0)
    block = CPDBlock(4, 6, 3, 2)
    before = block.weight.clone()
    with pytest.raises(AttributeError, match="weight"):
        block.weight = nn.Parameter(weight)
    assert torch.equal(block.weight, before)
