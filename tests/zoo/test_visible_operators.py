"""mmcv's compiled operators beside those of torchvision and torch that stand for them in a trace."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

from mmcv.ops import DeformConv2d, MaskedConv2d, ModulatedDeformConv2d
from mmcv.ops.deform_conv import DeformConv2dFunction

from norton_plugin.zoo.visible_operators import visible_operators

pytestmark = pytest.mark.mm


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


def both_ways(layer, *inputs):
    """What a layer returns by mmcv's operator and by a visible one, and the operators that were seen then."""
    torch.manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randn_like(parameter)
    with torch.no_grad():
        expected = layer(*inputs)
        with visible_operators(), Names() as names:
            return layer(*inputs), expected, names.seen


@pytest.mark.parametrize(
    ("groups", "runs", "options"), [(1, 1, {}), (2, 1, {"stride": 2}), (1, 2, {"dilation": (2, 1)}), (4, 4, {})]
)
def test_deformable(groups, runs, options):
    torch.manual_seed(0)
    layer = DeformConv2d(4, 8, 3, padding=1, groups=groups, deform_groups=runs, **options)
    x = torch.randn(2, 4, 9, 9)
    size = F.conv2d(x, torch.randn(1, 4, 3, 3), padding=1, **options).shape[2:]
    actual, expected, seen = both_ways(layer, x, torch.randn(2, 18 * runs, *size))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert "torchvision.deform_conv2d.default" in seen


def test_modulated():
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(4, 8, 3, padding=1, bias=True)
    actual, expected, seen = both_ways(layer, torch.randn(2, 4, 6, 6), torch.randn(2, 18, 6, 6), torch.rand(2, 9, 6, 6))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert "torchvision.deform_conv2d.default" in seen


def test_offsets_of_a_larger_map_are_read_from_the_start_of_their_memory():
    """DyHead gives one convolution the offsets of the level below it."""
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(4, 8, 3, padding=1)
    actual, expected, _ = both_ways(layer, torch.randn(1, 4, 3, 3), torch.randn(1, 18, 6, 6), torch.rand(1, 9, 6, 6))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_masked_runs_on_any_device():
    torch.manual_seed(0)
    layer, x = MaskedConv2d(2, 3, 1), torch.randn(1, 2, 2, 2)
    with torch.no_grad(), visible_operators():
        actual = layer(x, torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    expected = F.conv2d(x, layer.weight, layer.bias)
    assert torch.equal(actual[..., 0, 0], expected[..., 0, 0]) and torch.equal(actual[..., 1, 1], expected[..., 1, 1])
    assert not actual[..., 0, 1].any() and not actual[..., 1, 0].any()


def test_gradients_are_those_of_mmcv():
    layer = DeformConv2d(2, 2, 3, padding=1)
    with visible_operators(), Names() as names:
        layer(torch.randn(1, 2, 4, 4), torch.zeros(1, 18, 4, 4)).sum().backward()
    assert "torchvision.deform_conv2d.default" not in names.seen and layer.weight.grad.abs().sum() > 0


def test_those_who_are_inside_may_leave_in_any_order():
    """Runs of two models that are paused inside: the first to enter leaves first."""
    before = DeformConv2dFunction.forward
    with torch.no_grad():
        first, second = visible_operators(), visible_operators()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert DeformConv2dFunction.forward is not before  # the second still runs
        second.__exit__(None, None, None)
    assert DeformConv2dFunction.forward is before
