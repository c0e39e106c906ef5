"""Layers in other sizes: what a block of random factors is, and when two calls take equally long."""

import timm
import torch
from torch import nn

from norton_plugin.latency import skeleton, timed_layers
from norton_plugin.latency.layers import dense_layer, random_block, with_bias
from norton_plugin.recipe import Decomposition, Pruning, Recipe
from norton_plugin.surgery.layouts import Layout
from tests.networks import Residual, settle


def test_calls_are_told_apart_by_what_decides_their_time():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.MaxPool2d(2), shared, nn.Flatten(), nn.Linear(32, 5))
    found = timed_layers(model, torch.randn(2, 8, 4, 4))
    assert dict(found["0"].inputs) == {(2, 8, 4, 4): 2, (2, 8, 2, 2): 1}
    assert found["6"].key((2, 32)) == "linear 32 to 5 on 2x32 float32"
    assert found["0"].key((2, 8, 4, 4)) == (
        "conv 8 to 8 kernel 3x3 stride 1x1 padding 1x1 zeros dilation 1x1 groups 1 on 2x8x4x4 float32"
    )
    assert not model[0]._forward_pre_hooks


def test_a_layer_that_loses_channels_computes_maps_of_the_rest():
    for layer, cut, shape in (
        (nn.Conv2d(8, 12, 3, 2, padding=1), (6, 4), (6, 4, 3, 3)),
        (nn.Conv2d(8, 8, 3, groups=8), (4, 1), (4, 1, 3, 3)),
        (nn.Linear(8, 12), (3, 5), (3, 5)),
        (nn.Conv3d(8, 12, 3, 2, padding=1), (6, 4), (6, 4, 3, 3, 3)),
        (nn.Conv1d(8, 8, 5, groups=8), (4, 1), (4, 1, 5)),
    ):
        example = torch.randn(2, 8, *[9] * (layer.weight.dim() - 2))
        whole = timed_layers(nn.Sequential(layer), example)["0"]
        smaller = whole.cut(*cut)
        (inputs,) = smaller.inputs
        module = dense_layer(with_bias(smaller.contract))
        assert module.weight.shape == shape
        outputs = module(smaller.example(inputs))
        assert outputs.shape[-1 if isinstance(layer, nn.Linear) else 1] == cut[0]
        assert whole.cut(*layer.weight.shape[:2]) is whole


def test_random_blocks_are_as_large_as_the_layer_and_run():
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, groups=2), nn.Conv2d(32, 32, 3, padding="same", bias=False))
    for name, timed in timed_layers(model, torch.randn(1, 16, 8, 8)).items():
        groups = model[int(name)].groups
        for layout in (Layout("filter", None, 2), Layout("layer", groups, 3), Layout("spatial", groups, 3)):
            block = random_block(timed.contract, layout)
            torch.testing.assert_close(block.weight.norm(), timed.contract.weight.norm())
            (inputs,) = timed.inputs
            x = timed.example(inputs)
            torch.testing.assert_close(block.eval()(x).shape, model[int(name)](x).shape)
            assert (block.bias is None) == (model[int(name)].bias is None)


def test_padding_of_timm_is_kept():
    conv = timm.layers.create_conv2d(8, 8, 3, stride=2, padding="same")
    timed = timed_layers(nn.Sequential(conv), torch.randn(1, 8, 9, 9))["0"]
    x = torch.randn(1, 8, 9, 9)
    own = dense_layer(with_bias(timed.contract))(x)
    assert own.shape == conv(x).shape


def test_a_skeleton_has_the_sizes_of_a_recipe_and_leaves_all_else_alone():
    torch.manual_seed(0)
    model, example = settle(Residual(16)), torch.randn(1, 3, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    recipe = Recipe(
        decomposition=Decomposition(level="layer", layers={"layers.1.conv2": {"components": 5}}),
        pruning=Pruning(keeps={"layers.0.conv1": 0.5}, round_to=1),
    )
    found = skeleton(model, recipe, example_inputs=example, map_sizes={})
    assert found.layers[1].conv2.components == 5
    assert found.layers[0].conv1.out_channels == 8 and found.layers[0].conv2.in_channels == 8
    assert found(example).isfinite().all()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
