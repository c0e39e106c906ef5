"""CPDBlock is a convolution: torch's own with the rebuilt weight is the oracle."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norton_plugin.blocks import FORMS, CPDBlock
from norton_plugin.blocks.padding import sides
from norton_plugin.cpd import CPDFactors
from norton_plugin.errors import SurgeryError

GEOMETRIES = {
    "3x3": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=3, stride=2, padding=1),
    "rectangular": dict(kernel_size=(3, 5), stride=(2, 1), padding=(0, 2)),
    "row": dict(kernel_size=(1, 7), padding=(0, 3)),
    "column": dict(kernel_size=(5, 1), padding=(2, 0)),
    "dilated": dict(kernel_size=3, padding=(2, 4), dilation=(2, 4)),
    "stem": dict(kernel_size=7, stride=2, padding=3),
    "grouped": dict(kernel_size=3, padding=1, groups=3),
    "no bias": dict(kernel_size=3, padding=1, bias=False),
    "same": dict(kernel_size=(4, 3), padding="same", dilation=(1, 2)),
    "valid": dict(kernel_size=3, padding="valid"),
    "reflect": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "circular same": dict(kernel_size=(2, 3), padding="same", padding_mode="circular"),
    "replicate strided": dict(kernel_size=5, stride=2, padding=2, padding_mode="replicate"),
}


def reference(block, x):
    """nn.Conv2d of the same geometry with the rebuilt weight."""
    conv = nn.Conv2d(
        block.in_channels, block.out_channels, block.kernel_size, block.stride, block.padding, block.dilation,
        block.groups, block.bias is not None, block.padding_mode, dtype=x.dtype,
    )  # fmt: skip
    conv.weight.data = block.factors.reconstruct().detach().to(x.dtype)
    if block.bias is not None:
        conv.bias.data = block.bias.detach()
    return conv(x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_form_is_the_convolution_with_the_rebuilt_weight(name, form):
    torch.manual_seed(0)
    block = CPDBlock(6, 9, rank=2, **GEOMETRIES[name], dtype=torch.float64, form=form).eval()
    x = torch.randn(2, 6, 13, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x), reference(block, x), rtol=1e-12, atol=1e-12)
    assert block(x).abs().max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_input_without_a_batch_axis(form):
    block = CPDBlock(4, 6, 3, 2, padding=1, dtype=torch.float64, form=form).eval()
    x = torch.randn(4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), block(x[None])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(7, 7), (8, 9), (6, 11)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_dynamic_same_padding_gives_tensorflows_output_size(size, stride):
    block = CPDBlock(2, 3, (3, 5), 1, stride=stride, padding="dynamic_same").eval()
    height, width = block(torch.zeros(1, 2, *size)).shape[-2:]
    assert (height, width) == (-(-size[0] // stride), -(-size[1] // stride))
    # At stride 2 an even map of 8 pixels and 3 taps lacks one pixel, and it goes to the end.
    assert sides("dynamic_same", size=(8, 8), kernel_size=(3, 3), stride=(2, 2), dilation=(1, 1)) == (0, 1, 0, 1)


def test_training_uses_its_own_form_and_gradients_agree():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    gradients = []
    for form in FORMS:
        torch.manual_seed(1)
        block = CPDBlock(4, 6, 3, 2, padding=1, dtype=torch.float64, training_form=form)
        block(x).square().sum().backward()
        gradients.append([p.grad for p in block.parameters()])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-9, atol=1e-9)
    assert all(g.abs().sum() > 0 for g in gradients[0])


def test_it_reads_like_a_convolution():
    block = CPDBlock(6, 8, (3, 5), 2, stride=(2, 1), padding=(1, 2), groups=2)
    assert block.weight.shape == (8, 3, 3, 5)
    assert (block.in_channels, block.out_channels, block.kernel_size, block.stride) == (6, 8, (3, 5), (2, 1))
    assert (block.padding, block.dilation, block.groups, block.padding_mode) == ((1, 2), (1, 1), 2, "zeros")
    assert (block.transposed, block.output_padding, block.rank) == (False, (0, 0), 2)
    assert set(block.state_dict()) == {"head", "vertical", "horizontal", "bias"}
    assert "kernel_size=(3, 5), rank=2, stride=(2, 1)" in repr(block)


def test_fresh_block_has_the_variance_of_a_fresh_convolution():
    torch.manual_seed(0)
    block, conv = CPDBlock(64, 256, 3, 3), nn.Conv2d(64, 256, 3)
    assert float(block.weight.detach().var() / conv.weight.detach().var()) == pytest.approx(1.0, rel=0.15)


def test_init_weights_leaves_the_factors_alone():
    block = CPDBlock(4, 4, 3, 2)
    before = block.head.clone()
    block.init_weights()
    assert torch.equal(block.head, before) and block.is_init


@pytest.mark.parametrize("axis", ["filters", "channels"])
def test_selection_keeps_exactly_the_asked_part_of_the_output(axis):
    torch.manual_seed(0)
    block = CPDBlock(6, 8, 3, 2, padding=1, dtype=torch.float64).eval()
    block.head.requires_grad_(False)
    x = torch.randn(1, 6, 9, 9, dtype=torch.float64)
    whole = block.weight.detach(), block.bias.detach()
    block.select_([0, 2, 5], axis)
    if axis == "filters":
        expected = F.conv2d(x, whole[0][[0, 2, 5]], whole[1][[0, 2, 5]], padding=1)
        assert block.out_channels == 3
    else:
        expected = F.conv2d(x[:, [0, 2, 5]], whole[0][:, [0, 2, 5]], whole[1], padding=1)
        x = x[:, [0, 2, 5]]
        assert block.in_channels == 3
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    assert not block.head.requires_grad and block.vertical.requires_grad


def test_set_factors_casts_and_checks():
    block = CPDBlock(4, 2, 3, 1, dtype=torch.float16)
    factors = CPDFactors(torch.ones(2, 1, 4).double(), torch.ones(2, 1, 3).double(), torch.ones(2, 1, 3).double())
    block.set_factors(factors, torch.zeros(2))
    assert block.head.dtype == torch.float16 and torch.equal(block.weight, torch.ones(2, 4, 3, 3).half())
    with pytest.raises(SurgeryError, match=r"head has shape \(3, 1, 4\), the block expects \(2, 1, 4\)"):
        block.set_factors(factors._replace(head=torch.ones(3, 1, 4)))


def test_bad_selections_change_nothing():
    block = CPDBlock(4, 8, 3, 1)
    for keep, axis in ([8], "filters"), ([], "filters"), ([0], "rows"):
        with pytest.raises(SurgeryError):
            block.select_(keep, axis)
    assert block.head.shape == (8, 1, 4)
