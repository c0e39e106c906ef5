"""Spatial SVDs in random geometries, against the dense convolution; cuts of whole groups; what is refused.

Each case is one of the target ``spatial`` of tools/fuzz.py: outputs of both forms and their gradients, lowering, MACs,
decomposition, state dict, copies, the structure as JSON, and cuts of filters, channels and components.
"""

import copy
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from norton_plugin.blocks import ConvBlock, SpatialSVDBlock, spatial_selection
from norton_plugin.channels.layers import CurrentSizes
from norton_plugin.cpd import SpatialFactors
from norton_plugin.deploy import lowering
from norton_plugin.errors import SurgeryError

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
try:
    from fuzzing import spatial
    from fuzzing.verdict import OK, Wrong
finally:
    sys.path.remove(str(TOOLS))


def cases(numbers):
    for number in numbers:
        assert spatial.run(None, random.Random(f"spatial {number}"), number) == OK, number


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_a_spatial_svd_is_the_convolution_with_its_weight(first):
    cases(range(first, first + 30))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(120, 520, 100))
def test_hundreds_of_further_cases(first):
    cases(range(first, first + 100))


def first_components(block, index):
    """As many components stay, but the first ones."""
    own = spatial_selection.select_parameter_
    count = len(index) // block.groups
    rows = torch.arange(block.components).view(block.groups, -1)[:, :count].flatten()
    own(block, "vertical", rows, 0)
    own(block, "horizontal", torch.arange(count), 1)
    block.rank = count


def undilated(self, form, x, geometry):
    """The vertical convolution forgets its dilation."""
    if form == "separable":
        geometry = geometry._replace(dilation=(1, geometry.dilation[1]))
    return run_form(self, form, x, geometry)


run_form = SpatialSVDBlock.run_form


@pytest.mark.parametrize(
    ("home", "name", "wrong"),
    [
        (spatial_selection, "_keep_components_", first_components),
        (SpatialSVDBlock, "run_form", undilated),
        (lowering, "_spatial_convolutions", lambda block, form, padding: [nn.Identity()]),
        (spatial_selection, "compact_spatial_", lambda block: None),
    ],
)
def test_the_cases_find_what_is_wrong(home, name, wrong, monkeypatch):
    monkeypatch.setattr(home, name, wrong)
    with pytest.raises((Wrong, RuntimeError, SurgeryError)):
        cases(range(60))


def test_parameters_and_state():
    block = SpatialSVDBlock(8, 12, (3, 5), 4, groups=2, bias=False)
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "vertical": (8, 4, 3),
        "horizontal": (12, 4, 5),
    }
    assert list(block.state_dict()) == ["vertical", "horizontal"]
    assert (block.level, block.components, block.clusters, block.rank) == ("spatial", 8, 2, 4)
    assert isinstance(block, ConvBlock) and block.forms == ("separable", "dense")
    text = "SpatialSVDBlock(8, 12, kernel_size=(3, 5), rank=4, groups=2, bias=False)"
    assert repr(block) == text
    assert repr(eval(text)) == text  # the text rebuilds the block


def test_separable_is_two_dense_convolutions_each_with_its_own_stride():
    torch.manual_seed(0)
    block = SpatialSVDBlock(5, 6, 3, 4, stride=(2, 3), padding=(1, 2), dilation=(1, 2), form="separable").eval()
    x = torch.randn(2, 5, 14, 15)
    rows = nn.functional.conv2d(x, block.vertical[..., None], None, (2, 1), (1, 0))
    expected = nn.functional.conv2d(rows, block.horizontal[:, :, None], block.bias, (1, 3), (0, 2), (1, 2))
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("kernel", [1, 3, (3, 5)])
def test_a_fresh_block_has_the_variance_of_a_fresh_convolution(kernel):
    torch.manual_seed(0)
    found = [float(SpatialSVDBlock(64, 128, kernel, 8).weight.detach().var()) for _ in range(12)]
    expected = float(nn.Conv2d(64, 128, kernel).weight.detach().var())
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.2)


def test_flags_gradients_and_types_survive_a_cut():
    block = SpatialSVDBlock(6, 8, 3, 4, dtype=torch.bfloat16)
    block.vertical.requires_grad_(False)
    block(torch.randn(1, 6, 5, 5).bfloat16()).sum().backward()
    gradient = block.horizontal.grad.clone()
    block.select_([1, 5], "filters")
    assert torch.equal(block.horizontal.grad, gradient[[1, 5]]) and block.horizontal.dtype == torch.bfloat16
    assert not block.vertical.requires_grad and block.horizontal.requires_grad


def test_a_channel_group_without_filters_goes_whole():
    """What the channel graph does: tensors are cut, then sizes follow."""
    torch.manual_seed(0)
    block = SpatialSVDBlock(12, 12, 3, 2, groups=4, padding=1)
    weight, x = block.weight.detach(), torch.randn(1, 12, 6, 6)
    keep = [0, 1, 2, 6, 7, 8]  # groups 0 and 2
    expected = nn.functional.conv2d(x, weight, block.bias, padding=1, groups=4)[:, keep]
    for name in ("horizontal", "bias"):
        setattr(block, name, nn.Parameter(getattr(block, name).detach()[keep]))
    block.group = block.group[keep]
    refresh = spatial_layer().refresh
    refresh(block, CurrentSizes(inputs=6))
    assert (block.groups, block.in_channels, block.out_channels, block.components) == (2, 6, 6, 4)
    assert block.group.tolist() == [0, 0, 0, 1, 1, 1] and list(block.state_dict()) == ["vertical", "horizontal", "bias"]
    torch.testing.assert_close(block(x[:, keep]), expected)
    for name in ("horizontal", "bias"):
        setattr(block, name, nn.Parameter(getattr(block, name).detach()[3:]))
    block.group = block.group[3:]
    refresh(block, CurrentSizes(inputs=3))
    assert block.groups == 1 and block.group is None
    torch.testing.assert_close(block(x[:, 6:9]), expected[:, 3:])


def spatial_layer():
    from norton_plugin.channels.layers import layer_type

    return layer_type(SpatialSVDBlock(2, 2, 3, 1))


def test_a_copy_of_a_cut_block_can_be_cut_again():
    block = SpatialSVDBlock(8, 8, 3, 2, groups=2)
    block.select_([0, 1, 4, 5], "filters")
    other = copy.deepcopy(block)
    other.select_([0, 2], "filters")
    assert (block.out_channels, other.out_channels) == (4, 2) and block.group.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank 0 is not a whole number"),
        ({"rank": 1.5}, "rank 1.5 is not a whole number"),
        ({"groups": 3}, "groups 3 must divide in_channels 8"),
        ({"form": "depthwise"}, r"form 'depthwise' is unknown; expected one of \('separable', 'dense', 'auto'\)"),
        ({"training_form": "grouped"}, "training_form 'grouped' is unknown"),
        ({"padding": "same", "stride": 2}, "padding 'same' needs stride 1"),
        ({"rank": 2**27}, "takes .* numbers; at most"),
        ({"bias": 1}, "bias 1 is neither True nor False"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(SurgeryError, match=message):
        SpatialSVDBlock(**{"in_channels": 8, "out_channels": 8, "kernel_size": 3, "rank": 2, **arguments})


def test_wrong_selections_and_factors_are_refused():
    block = SpatialSVDBlock(8, 8, 3, 2, groups=2)
    for keep, axis, message in (
        ([0, 1, 4], "filters", r"\[2, 1\] filters would stay in the 2 channel groups"),
        ([0, 1, 2], "components", r"\[2, 1\] components would stay in the 2 channel groups"),
        ([4], "channels", r"indices \[4\] do not select from 4 channels"),
    ):
        with pytest.raises(SurgeryError, match=message):
            block.select_(keep, axis)
    with pytest.raises(SurgeryError, match=r"vertical has shape \(4, 8, 3\), the block expects \(4, 4, 3\)"):
        block.set_factors(SpatialFactors(torch.ones(4, 8, 3), torch.ones(8, 2, 3)))
