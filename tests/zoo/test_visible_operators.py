"""mmcv's compiled operators beside those of torchvision and torch that stand for them in a trace."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")

from mmcv.ops import DeformConv2d, MaskedConv2d, ModulatedDeformConv2d
from mmcv.ops.carafe import CARAFEPack, carafe, carafe_naive
from mmcv.ops.deform_conv import DeformConv2dFunction

from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_
from norton_plugin.surgery.report import blocking
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


@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 2), (3, 4, 3), (1, 1, 1)])
def test_reassembly_by_its_definition(kernel, groups, scale):
    torch.manual_seed(0)
    channels, height, width, reach = 4, 4, 5, kernel // 2
    x = torch.randn(2, channels, height, width, dtype=torch.double)
    masks = torch.randn(2, groups * kernel**2, height * scale, width * scale, dtype=torch.double)
    expected = torch.zeros(2, channels, height * scale, width * scale, dtype=torch.double)
    taps = list(itertools.product(range(kernel), repeat=2))
    for n, c, i, j in itertools.product(*map(range, expected.shape)):
        for number, (down, right) in enumerate(taps):
            y, z = i // scale + down - reach, j // scale + right - reach
            if 0 <= y < height and 0 <= z < width:
                weight = masks[n, c // (channels // groups) * len(taps) + number, i, j]
                expected[n, c, i, j] += x[n, c, y, z] * weight
    with torch.no_grad(), visible_operators(), Names() as names:
        for reassemble in (carafe, carafe_naive):
            torch.testing.assert_close(reassemble(x, masks, kernel, groups, scale), expected)
    assert any("upsample_nearest2d" in name for name in names.seen)


def test_reassembly_is_pruned_and_its_taps_stay():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), CARAFEPack(8, 2, up_kernel=3, compressed_channels=6), torch.nn.Conv2d(8, 4, 1)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def run(model, image):
        with visible_operators():
            return model(image)

    report = prune_(model, torch.randn(1, 3, 9, 9), Pruning(keep=0.5, round_to=1), forward_fn=run)
    assert report.largest_error < 1e-6 and not blocking(report.skipped)
    assert {group.root: group.after for group in report.groups} == {"0": 4, "1.channel_compressor": 3}
    assert {s.name: s.code for s in report.skipped}["1.content_encoder"] == "positions-or-heads"
    assert model[1].content_encoder.out_channels == 36 and model[2].in_channels == 4


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
