"""Closed forms of docs/method.md, section 1, against the counter and the paper."""

import pytest
import torch
from torch import nn

from norton_plugin.blocks import CPDBlock, SpatialSVDBlock, break_even_rank, conv_cost, cpd_cost, spatial_cost
from norton_plugin.cost import count_cost
from norton_plugin.errors import SurgeryError

VGG16 = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 256, 8)]
VGG16 += [(256, 512, 4), (512, 512, 4), (512, 512, 4), (512, 512, 2), (512, 512, 2), (512, 512, 2)]


def test_dense_cost_is_the_product_of_all_extents():
    assert conv_cost(64, 32, (3, 3), output_size=(8, 10)) == (64 * 32 * 9 * 80, 64 * 32 * 9)


def test_decomposed_cost_counts_the_pointwise_step_on_the_whole_input():
    assert cpd_cost(8, 5, (3, 5), 2, input_size=(10, 12), output_size=(5, 6)) == (
        2 * 8 * (5 * 120 + 3 * 5 * 12 + 5 * 5 * 6),
        2 * 8 * (5 + 3 + 5),
    )


@pytest.mark.parametrize(
    ("channels", "stride", "rank"),
    [(3, 1, 2), (16, 1, 6), (64, 1, 8), (512, 1, 8), (64, 2, 2), (512, 2, 2), (3, 2, 1), (1, 1, 1)],
)
def test_break_even_rank_of_3x3_kernels(channels, stride, rank):
    assert break_even_rank(channels, (3, 3), stride=(stride, stride)) == rank
    dense = conv_cost(1, channels, (3, 3)).macs
    sizes = {"input_size": (stride, stride), "output_size": (1, 1)}
    assert cpd_cost(1, channels, (3, 3), rank, **sizes).macs < dense
    assert cpd_cost(1, channels, (3, 3), rank + 1, **sizes).macs >= dense


def test_pointwise_kernels_have_no_useful_rank():
    assert break_even_rank(64, (1, 1)) == 0


@pytest.mark.parametrize("rank", range(1, 9))
def test_parameters_of_vgg16_fall_as_the_paper_says(rank):
    # Every parameter of the paper's network: convolutions with bias, BatchNorms, and the two-layer classifier.
    rest = sum(n * 3 for _, n, _ in VGG16) + 512 * 512 + 512 + 2 * 512 + 512 * 10 + 10
    dense = rest + sum(conv_cost(n, c, (3, 3)).parameters for c, n, _ in VGG16)
    factors = rest + sum(cpd_cost(n, c, (3, 3), rank).parameters for c, n, _ in VGG16)
    published = [87.06, 75.98, 64.91, 53.84, 42.76, 31.69, 20.61, 9.54][rank - 1]
    # To a hundredth of a point: no choice of what else to count (biases, norms) gives all eight figures exactly.
    assert 100 * (1 - factors / dense) == pytest.approx(published, abs=0.016)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_counter_agrees_with_the_closed_forms(groups, stride):
    size = {"input_size": (12, 16), "output_size": (12 // stride, 16 // stride)}
    conv = nn.Sequential(nn.Conv2d(8, 16, 3, stride=stride, padding=1, groups=groups))
    block = nn.Sequential(CPDBlock(8, 16, 3, 2, stride=stride, padding=1, groups=groups))
    x = torch.zeros(1, 8, 12, 16)
    channels = 8 // groups
    expected = conv_cost(16, channels, (3, 3), output_size=size["output_size"])
    assert count_cost(conv, lambda: conv(x)).macs == expected.macs
    for form in ("separable", "dense"):
        block[0].form = form
        cost = count_cost(block, lambda: block(x))
        assert cost.macs == cpd_cost(16, channels, (3, 3), 2, **size).macs
        assert cost.layer_macs == {"0": cost.macs}
        assert block[0].form == form
    assert cost.parameters == cpd_cost(16, channels, (3, 3), 2).parameters + 16


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 1), (1, 3)])
def test_counter_agrees_with_the_closed_form_of_a_spatial_svd(groups, stride):
    size = {"input_size": (12, 18), "output_size": (12 // stride[0], 18 // stride[1])}
    block = nn.Sequential(SpatialSVDBlock(8, 16, (3, 5), 3, stride=stride, padding=(1, 2), groups=groups))
    expected = spatial_cost(16, 8 // groups, (3, 5), 3 * groups, groups=groups, **size)
    for form in ("separable", "dense"):
        block[0].form = form
        cost = count_cost(block, lambda: block(torch.zeros(1, 8, 12, 18)))
        assert cost.macs == expected.macs == cost.layer_macs["0"] and block[0].form == form
        assert cost.parameters == expected.parameters + 16


def test_counter_adds_up_the_calls_of_a_shared_layer_and_sees_functions():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1, bias=False)

        def forward(self, x):
            y = self.conv(self.conv(x))
            return torch.einsum("bchw,bdhw->bcd", y, y)

    net = Twice()
    cost = count_cost(net, lambda: net(torch.zeros(2, 4, 3, 3)))
    assert cost.layer_macs["conv"] == 2 * 2 * 16 * 9
    assert cost.macs == 2 * 2 * 16 * 9 + 2 * 16 * 9
    assert cost.map_sizes["conv"] == ((3, 3), (3, 3))


@pytest.mark.parametrize("fails", [False, True])
def test_flags_forms_and_hooks_come_back(fails):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), CPDBlock(4, 4, 3, 1, form="dense")).train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    seen = []

    def call():
        seen.append(
            (net.training, net[2].form, torch.is_grad_enabled(), any(p.requires_grad for p in net.parameters()))
        )
        net(torch.zeros(1, 5 if fails else 3, 8, 8))

    if fails:
        with pytest.raises(SurgeryError, match="does not run on the example inputs"):
            count_cost(net, call)
    else:
        count_cost(net, call)
    assert seen == [(False, "separable", False, False)]
    assert [module.training for module in net.modules()] == [True, True, False, True] and net[2].form == "dense"
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("sizes", [(6, 9), (9, 6)])
def test_map_sizes_are_those_of_the_largest_call(sizes):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2))
    found = count_cost(net, lambda: [net(torch.zeros(1, 3, size, size + 1)) for size in sizes])
    assert found.map_sizes["0"] == ((9, 10), (4, 4))
