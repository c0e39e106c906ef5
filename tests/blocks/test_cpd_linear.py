"""CPDLinear: a Linear layer with the weight of its factors; numpy's SVD is the oracle of what it is made from."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDLinear
from norton_plugin.errors import SurgeryError
from norton_plugin.recipe import Decomposition
from norton_plugin.surgery import decompose_


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_it_is_the_linear_layer_with_its_weight(bias, shape):
    torch.manual_seed(0)
    layer = CPDLinear(6, 9, 4, bias=bias, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    expected = x @ (layer.mix @ layer.head).T + (layer.bias if bias else 0)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert layer.weight.shape == (9, 6) and (layer.in_features, layer.out_features, layer.components) == (6, 9, 4)
    assert ("bias=False" in repr(layer)) is not bias


@pytest.mark.parametrize("components", [1, 3, 6])
def test_a_decomposed_layer_is_the_truncated_svd(components):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8)).double()
    weight = model[0].weight.detach().clone()
    settings = {"0": {"level": "layer", "components": components}}
    [report] = decompose_(model, Decomposition(layers=settings, linear=True, allow_more_macs=True)).layers
    u, s, v = np.linalg.svd(weight.numpy(), full_matrices=False)
    truncated = (u[:, :components] * s[:components]) @ v[:components]
    np.testing.assert_allclose(model[0].weight.detach().numpy(), truncated, atol=1e-9)
    assert report.nmse_layer == pytest.approx(float((s[components:] ** 2).sum() / (s**2).sum()), abs=1e-12)
    assert isinstance(model[0], CPDLinear) and type(model[2]) is nn.Linear and report.components == components


def test_flags_dtype_bias_and_mode_are_taken_over():
    model = nn.Sequential(nn.Linear(8, 8)).to(torch.bfloat16).eval()
    model[0].weight.requires_grad_(False)
    bias = model[0].bias.detach().clone()
    decompose_(model, Decomposition(level="layer", components=2, linear=True))
    layer = model[0]
    assert layer.head.dtype == layer.mix.dtype == torch.bfloat16 and not layer.training
    assert [p.requires_grad for p in (layer.head, layer.mix, layer.bias)] == [False, False, True]
    assert torch.equal(layer.bias, bias)


def test_a_fresh_layer_has_the_variance_of_a_fresh_linear_layer():
    torch.manual_seed(0)
    layer, linear = CPDLinear(128, 512, 32), nn.Linear(128, 512)
    assert float(layer.weight.detach().var() / linear.weight.detach().var()) == pytest.approx(1.0, rel=0.15)


def test_mmengine_leaves_the_factors_alone_and_copies_are_equal():
    layer = CPDLinear(4, 4, 2)
    other = copy.deepcopy(layer)
    layer.init_weights()
    assert layer.is_init and torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize(("keep", "axis"), [([1, 4], "filters"), ([0, 2, 3], "channels"), ([1], "components")])
def test_selection(keep, axis):
    torch.manual_seed(0)
    layer = CPDLinear(5, 6, 3)
    layer.head.requires_grad_(False)
    head, mix, bias = layer.head.detach().clone(), layer.mix.detach().clone(), layer.bias.detach().clone()
    layer.select_(keep, axis)
    weight = mix[:, keep] @ head[keep] if axis == "components" else mix @ head
    expected = {"filters": weight[keep], "channels": weight[:, keep] if axis == "channels" else None}.get(axis, weight)
    torch.testing.assert_close(layer.weight, expected)
    assert torch.equal(layer.bias, bias[keep] if axis == "filters" else bias)
    assert (layer.out_features, layer.in_features) == tuple(expected.shape) and layer.components == len(layer.head)
    assert not layer.head.requires_grad and layer.mix.requires_grad


def test_components_without_use_go_with_the_outputs():
    layer = CPDLinear(5, 6, 3)
    with torch.no_grad():
        layer.mix[1:, 1] = 0
    weight = layer.weight.detach().clone()
    layer.select_([1, 2, 5], "filters")
    assert layer.components == 2 and layer.head.shape == (2, 5)
    torch.testing.assert_close(layer.weight, weight[[1, 2, 5]])


@pytest.mark.parametrize(("keep", "axis"), [([6], "filters"), ([], "channels"), ([3], "components"), ([0], "rows")])
def test_bad_selections_change_nothing(keep, axis):
    layer = CPDLinear(5, 6, 3)
    with pytest.raises(SurgeryError, match="expected one of|do not select from"):
        layer.select_(keep, axis)
    assert layer.mix.shape == (6, 3) and layer.head.shape == (3, 5)
