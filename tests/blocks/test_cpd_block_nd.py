"""CPDBlocks of one and three axes: torch's convolutions with the rebuilt weight are the oracle.

tests/blocks/test_levels.py draws further geometries, with lowering, state dicts, structures and cuts.
"""

import copy

import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPD_BLOCKS, FORMS, CPDBlock, CPDBlock1d, CPDBlock3d, conv_cost, coupled_cost, cpd_cost
from norton_plugin.blocks.convolutions import LAYERS
from norton_plugin.blocks.form_choice import shape_for, static_form
from norton_plugin.blocks.padding import sides
from norton_plugin.cost import count_cost
from norton_plugin.cpd import CPDFactors
from norton_plugin.deploy import lower_block
from norton_plugin.errors import SurgeryError

GEOMETRIES = {
    "3x3x3": dict(kernel_size=3, padding=1),
    "temporal": dict(kernel_size=(3, 1, 1), padding=(1, 0, 0)),
    "frames": dict(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    "stem": dict(kernel_size=(3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3)),
    "uneven": dict(kernel_size=(2, 3, 4), stride=(2, 1, 3), padding=(0, 2, 1), dilation=(2, 1, 1)),
    "grouped": dict(kernel_size=3, padding=1, groups=3),
    "no bias": dict(kernel_size=3, padding=1, bias=False),
    "same": dict(kernel_size=(4, 3, 2), padding="same", dilation=(1, 2, 1)),
    "reflect": dict(kernel_size=3, padding=(1, 2, 3), padding_mode="reflect"),
    "circular same": dict(kernel_size=(2, 3, 3), padding="same", padding_mode="circular"),
    "replicate strided": dict(kernel_size=3, stride=2, padding=2, padding_mode="replicate"),
    "1x1x1": dict(kernel_size=1, stride=2),
}
SHARED = {"filter": {}, "cluster": dict(clusters=3), "unequal": dict(clusters=6, cluster_size=3)}


def last(arguments, axes):
    """The arguments of the last axes of a 3-D geometry."""
    return {name: value[-axes:] if isinstance(value, tuple) else value for name, value in arguments.items()}


def dense_of(block):
    conv = LAYERS[len(block.kernel_size)](
        block.in_channels, block.out_channels, block.kernel_size, block.stride, block.padding, block.dilation,
        block.groups, block.bias is not None, block.padding_mode, dtype=block.head.dtype,
    )  # fmt: skip
    conv.weight.data = block.factors.reconstruct().detach()
    if block.bias is not None:
        conv.bias.data = block.bias.detach().clone()
    return conv


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("axes", [1, 3])
def test_every_form_and_what_it_is_lowered_to_is_the_convolution_with_the_rebuilt_weight(axes, name, shared):
    torch.manual_seed(0)
    arguments = last(GEOMETRIES[name], axes)
    block = CPD_BLOCKS[axes](6, 9, rank=2, dtype=torch.float64, **arguments, **SHARED[shared]).eval()
    x = torch.randn(2, 6, *(7, 8, 9)[-axes:], dtype=torch.float64)
    expected = dense_of(block)(x)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(block.weight, block.factors.reconstruct(), rtol=1e-12, atol=1e-12)
    for form in (*FORMS, "auto"):
        block.form = form
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(block(x[0]), expected[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lower_block(block)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, (2, 1, 3)])
def test_dynamic_same_padding_of_three_axes(stride):
    block = CPDBlock3d(2, 3, (3, 5, 2), 2, stride=stride, padding="dynamic_same").eval()
    x = torch.randn(1, 2, 5, 8, 7)
    found = block(x)
    assert found.shape[2:] == tuple(-(-side // step) for side, step in zip(x.shape[2:], block.stride, strict=True))
    torch.testing.assert_close(lower_block(block)(x), found)
    geometry = {"kernel_size": (3, 1, 3), "stride": (2, 1, 1), "dilation": (1, 1, 2)}
    assert sides("dynamic_same", size=(8, 4, 6), **geometry) == (2, 2, 0, 0, 0, 1)


def test_gradients_of_all_forms_are_those_of_the_dense_convolution():
    torch.manual_seed(0)
    block = CPDBlock3d(4, 6, (2, 3, 3), 2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 6, 7, dtype=torch.float64)
    dense = nn.functional.conv3d(x, block.weight, block.bias, padding=1)
    expected = torch.autograd.grad(dense.square().sum(), list(block.parameters()))
    assert [name for name, _ in block.named_parameters()] == ["head", "depth", "vertical", "horizontal", "bias"]
    for form in FORMS:
        block.training_form = form
        found = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(gradient.abs().max() > 0 for gradient in expected)


def test_it_reads_like_a_convolution():
    block = CPDBlock3d(6, 8, (3, 1, 5), 2, stride=(1, 2, 2), padding=(1, 0, 2), groups=2)
    assert isinstance(block, CPDBlock) and block.weight.shape == (8, 3, 3, 1, 5)
    assert (block.stride, block.padding, block.dilation) == ((1, 2, 2), (1, 0, 2), (1, 1, 1))
    assert (block.transposed, block.output_padding, block.level) == (False, (0, 0, 0), "filter")
    assert "kernel_size=(3, 1, 5), rank=2, stride=(1, 2, 2), padding=(1, 0, 2), groups=2" in repr(block)
    assert set(CPDBlock1d(4, 4, 3, 2).state_dict()) == {"head", "horizontal", "bias"}
    assert set(CPDBlock3d(4, 4, 1, 2, clusters=1).state_dict()) == {"head", "mix", "bias"}
    assert repr(copy.deepcopy(block)) == repr(block)


@pytest.mark.parametrize("kind", [CPDBlock1d, CPDBlock3d])
def test_a_fresh_block_has_the_variance_of_a_fresh_convolution(kind):
    torch.manual_seed(0)
    block, conv = kind(64, 256, 3, 3), LAYERS[len(kind.axes)](64, 256, 3)
    assert float(block.weight.detach().var() / conv.weight.detach().var()) == pytest.approx(1.0, rel=0.2)


def test_what_is_refused():
    for arguments in dict(kernel_size=(3, 3)), dict(kernel_size=3, stride=(1, 2)), dict(kernel_size=3, padding=(1, 1)):
        with pytest.raises(SurgeryError, match="one or three .* whole numbers"):
            CPDBlock3d(4, 4, rank=1, **arguments)
    with pytest.raises(SurgeryError, match="stride 1"):
        CPDBlock3d(4, 4, 3, 1, padding="same", stride=(1, 1, 2))
    with pytest.raises(SurgeryError, match="at most"):
        CPDBlock3d(2**12, 2**12, 9, 1)
    flat = CPDFactors(*(torch.ones(2, 1, length) for length in (4, 3, 3)))
    with pytest.raises(SurgeryError, match="factors of 2 axes"):
        CPDBlock3d(4, 2, 3, 1).set_factors(flat)


def test_cost_is_what_the_counter_counts():
    """R N (C T H W + Kt To H W + Kh To Ho W + Kw To Ho Wo), and the mix of shared components."""
    sizes = {"input_size": (4, 8, 6), "output_size": (2, 4, 3)}
    assert conv_cost(5, 4, (3, 2, 3), output_size=(2, 4, 3)).macs == 5 * 4 * 18 * 24
    by_hand = 2 * 5 * (4 * 4 * 8 * 6 + 3 * 2 * 8 * 6 + 2 * 2 * 4 * 6 + 3 * 2 * 4 * 3)
    assert cpd_cost(5, 4, (3, 2, 3), 2, **sizes) == (by_hand, 2 * 5 * (4 + 3 + 2 + 3))
    for arguments, expected in (
        ({"rank": 2}, cpd_cost(5, 4, (3, 2, 3), 2, **sizes)),
        ({"rank": 7, "clusters": 1}, coupled_cost(5, 4, (3, 2, 3), 7, **sizes)),
    ):
        block = CPDBlock3d(4, 5, (3, 2, 3), stride=2, padding=(1, 0, 1), bias=False, **arguments).eval()
        found = count_cost(block, lambda block=block: block(torch.zeros(1, 4, 4, 8, 6)))
        assert (found.macs, found.parameters) == tuple(expected)
        assert found.map_sizes == {"": ((4, 8, 6), (2, 4, 3))}


def test_the_form_is_chosen_by_sizes():
    block = CPDBlock3d(64, 64, 3, 1, padding=1)
    shape = shape_for(block, (8, 28, 28))
    assert shape.output_size == (8, 28, 28) and shape.kernel_size == (3, 3, 3)
    assert static_form(shape)[0] != "dense"
    assert static_form(shape_for(CPDBlock3d(4, 4, 3, 27, padding=1), (4, 4, 4)))[0] == "dense"
