"""Convolutions with a forward of their own: the block must compute what they compute."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from norton_plugin.reasons import Reason
from norton_plugin.surgery import from_conv
from norton_plugin.surgery.contract import ConvContract, read_contract

timm_layers = pytest.importorskip("timm.layers", reason="timm is not installed")


def randomised(conv: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in conv.parameters():
        parameter.data.normal_()
    return conv.double().eval()


@pytest.mark.parametrize("size", [(9, 9), (10, 13)])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("Conv2dSame", dict(kernel_size=3, stride=2)),
        ("Conv2dSame", dict(kernel_size=(3, 5), stride=1, dilation=2)),
        ("StdConv2d", dict(kernel_size=3, stride=2, padding=1)),
        ("StdConv2dSame", dict(kernel_size=3, stride=2, padding="same")),
        ("ScaledStdConv2d", dict(kernel_size=3, padding=1, groups=2)),
        ("ScaledStdConv2dSame", dict(kernel_size=5, stride=2, padding="same")),
    ],
)
def test_timm_layers_at_full_rank(kind, arguments, size):
    conv = randomised(getattr(timm_layers, kind)(4, 6, **arguments))
    kh, kw = conv.kernel_size
    block = from_conv(conv, kh * kw)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(block(x), conv(x), rtol=1e-9, atol=1e-9)
    if "Std" in kind:
        assert (read_contract(conv).weight - conv.weight).abs().max() > 0.1


def test_mmcv_layers_at_full_rank():
    bricks = pytest.importorskip("mmcv.cnn.bricks", reason="mmcv is not installed")
    for kind in (bricks.ConvWS2d, bricks.wrappers.Conv2d):
        conv = randomised(kind(4, 6, 3, padding=1))
        x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
        torch.testing.assert_close(from_conv(conv, 9)(x), conv(x), rtol=1e-6, atol=1e-6)


def test_a_parametrised_weight_is_baked_in():
    conv = parametrizations.weight_norm(randomised(nn.Conv2d(4, 6, 3)), name="weight")
    conv.parametrizations.weight.original0.data.mul_(3)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(from_conv(conv, 9)(x), conv(x), rtol=1e-9, atol=1e-9)


def test_a_plain_subclass_is_a_convolution_and_an_overriding_one_is_not():
    class Renamed(nn.Conv2d):
        """Adds nothing."""

    class Scaled(nn.Conv2d):
        def _conv_forward(self, *arguments):
            return 2 * super()._conv_forward(*arguments)

    assert isinstance(read_contract(Renamed(4, 6, 3)), ConvContract)
    assert read_contract(Scaled(4, 6, 3)) == Reason.OWN_FORWARD.because(module="Scaled")
    assert read_contract(nn.Conv2d(4, 6, 3, device="meta")) == Reason.ON_META.because()
