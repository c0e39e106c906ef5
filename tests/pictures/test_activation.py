"""Class activation maps: of the right layer, right by hand, and compared by correlation."""

import sys

import numpy as np
import pytest
import torch
from networks import Dense, Residual, settle
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.errors import MissingExtraError, SourceError
from norton_plugin.pictures import activation_maps, last_map
from norton_plugin.pictures.activation import correlation

INPUTS = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16).sin()
PLAIN = np.zeros((16, 16, 3), np.float32)


@pytest.fixture
def library():
    return pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install 'norton-plugin[cam]'")


def net():
    torch.manual_seed(0)
    return settle(Residual())


def test_the_last_map():
    assert last_map(net(), INPUTS) == "layers"
    torch.manual_seed(0)
    assert last_map(Dense().eval(), INPUTS) == "pointwise"
    shared = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    shared.append(shared[1])  # runs twice: which of its outputs would be meant?
    assert last_map(shared, INPUTS) == "2"
    with pytest.raises(SourceError, match="no layer of the model returns a map"):
        last_map(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), INPUTS)


def test_a_map_is_that_of_the_paper(library):
    model = net()
    seen = activation_maps([model], INPUTS, PLAIN, layer="layers.0")
    assert seen.target == int(model(INPUTS).argmax()) == seen.models[0].best
    kept = {}
    handle = model.layers[0].register_forward_hook(lambda *a: kept.update(a=a[-1]))
    score = model(INPUTS)[0, seen.target]
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept["a"])
    expected = (gradient.mean((2, 3), keepdim=True) * kept["a"]).sum(1)[0].relu().detach()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(seen.models[0].map, expected.numpy(), atol=1e-4)


def test_compressed_models_are_compared_with_the_dense_one(library):
    dense = net()
    recipe = Recipe.from_dict({"decomposition": {"rank": 1}, "pruning": {"keep": 0.5}})
    small = compress(dense, INPUTS, recipe).model
    seen = activation_maps([dense, net(), small], INPUTS, PLAIN, layer=last_map(dense, INPUTS))
    first, same, other = (view.correlation for view in seen.models)
    assert (first, same) == (pytest.approx(1), pytest.approx(1))
    assert other is None or other < 0.999
    assert seen.models[2].map.shape == (16, 16)
    assert not any(module._forward_hooks for module in dense.modules())


def test_correlation():
    ramp = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    assert correlation(ramp, 2 * ramp + 5) == pytest.approx(1)
    assert correlation(ramp, -ramp) == pytest.approx(-1)
    assert correlation(ramp, np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)) == pytest.approx(0)
    assert correlation(ramp, np.ones_like(ramp)) is None


def test_a_layer_that_is_not_there_or_no_map(library):
    with pytest.raises(SourceError, match="has no layer 'layer4'"):
        activation_maps([net()], INPUTS, PLAIN, layer="layer4")
    with pytest.raises(SourceError, match="the output of head is no map"):
        activation_maps([net()], INPUTS, PLAIN, layer="head")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(MissingExtraError, match=r"norton-plugin\[cam\]"):
        activation_maps([net()], INPUTS, PLAIN, layer="layers")
