"""Convolutions whose kernel is mixed for each image from those of experts (timm's CondConv2d)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.channels import ChannelGraph
from norton_plugin.recipe import Decomposition, Pruning, Scope
from norton_plugin.surgery import prune_
from norton_plugin.surgery.distances import filter_rows
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.report import blocking
from norton_plugin.surgery.structure import apply_structure_, diff
from norton_plugin.surgery.targets import plan_decomposition

layers = pytest.importorskip("timm.layers", reason="needs timm: pip install 'norton-plugin[timm]'")
EXPERTS = 3
# What a layer may be given: TensorFlow's padding depends on the size of the map, groups are split as everywhere.
OPTIONS = {
    "plain": {},
    "bias, stride and TensorFlow's padding": {"bias": True, "stride": 2, "padding": "same"},
    "dilated": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2, "bias": True},
    "depthwise": {"groups": 8, "padding": "same"},
}


class Net(nn.Module):
    """A mixed convolution between two plain ones; where it can, it also adds to what it reads."""

    def __init__(self, residual=False, **options):
        super().__init__()
        filters = 8 if residual or options.get("groups") == 8 else 12
        self.stem, self.route = nn.Conv2d(3, 8, 3), nn.Linear(8, EXPERTS)
        self.mixed = layers.CondConv2d(8, filters, 3, num_experts=EXPERTS, **{"padding": 1, **options})
        self.head, self.residual = nn.Conv2d(filters, 4, 1), residual

    def forward(self, x):
        x = self.stem(x)
        y = self.mixed(x, self.route(x.mean((2, 3))).sigmoid())
        return self.head((x + y if self.residual else y).relu())


def build(residual=False, **options):
    """All numbers of a parameter are different."""
    torch.manual_seed(0)
    return Net(residual, **options).double().eval()


def pruned(net, image, keep=0.5):
    small = copy.deepcopy(net)
    report = prune_(small, image, Pruning(keep=keep, round_to=1))
    assert not blocking(report.skipped) and report.largest_error < 1e-6
    return small, report


def looked_up(dense, small):
    """Return the dense network with zeros in place of the numbers that the small one does not have."""
    reference = copy.deepcopy(dense)
    for name, tensor in reference.named_parameters():
        kept = torch.isin(tensor, small.get_parameter(name))
        assert int(kept.sum()) == small.get_parameter(name).numel()
        tensor.data.masked_fill_(~kept, 0)
    return reference


@pytest.fixture
def image():
    return torch.randn(2, 3, 11, 11, dtype=torch.double, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_filters_and_inputs_go_from_every_expert(image, options):
    net = build(**options)
    small, report = pruned(net, image)
    groups, filters = options.get("groups", 1), net.mixed.out_channels // 2
    if groups == 8:
        groups = 4
    mixed = small.mixed
    assert (mixed.in_channels, mixed.out_channels, mixed.groups) == (4, filters, groups)
    assert mixed.weight_shape == (filters, 4 // groups, 3, 3)
    assert mixed.weight.shape == (EXPERTS, filters * 4 // groups * 9)
    if mixed.bias is not None:
        assert mixed.bias_shape == (filters,) and mixed.bias.shape == (EXPERTS, filters)
    assert small.stem.out_channels == small.route.in_features == 4 and small.head.in_channels == filters
    assert small.route.out_features == EXPERTS
    assert [(s.name, s.cause.code) for s in report.skipped if s.name != "head"] == [("route", "positions-or-heads")]
    other = torch.randn(3, 3, 14, 17, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(small(other), looked_up(net, small)(other), rtol=1e-12, atol=1e-12)


def test_what_it_adds_to_goes_with_its_filters_on_both_sides(image):
    """Both axes of one flat row are cut by the same channels."""
    net = build(residual=True)
    small, _ = pruned(net, image)
    assert small.mixed.weight_shape == (4, 4, 3, 3) and small.mixed.weight.shape == (EXPERTS, 144)
    torch.testing.assert_close(small(image), looked_up(net, small)(image), rtol=1e-12, atol=1e-12)


def test_it_computes_what_the_kept_filters_of_each_expert_compute(image):
    net = build(bias=True)
    x = net.stem(image)
    kept, shares = [0, 2, 3, 5, 6, 7, 8, 9, 10], net.route(x.mean((2, 3))).sigmoid()
    kernels = net.mixed.weight.view(EXPERTS, 12, 8, 3, 3)[:, kept]
    biases = net.mixed.bias[:, kept]
    maps = [
        F.conv2d(x[i : i + 1], (s[:, None, None, None, None] * kernels).sum(0), s @ biases, padding=1)
        for i, s in enumerate(shares)
    ]
    expected = F.conv2d(torch.cat(maps).relu(), net.head.weight[:, kept], net.head.bias)
    gradient = torch.randn_like(net.mixed.weight)
    net.mixed.weight.grad = gradient
    ChannelGraph(net, image).prune("mixed", [1, 4, 11])
    torch.testing.assert_close(net(image), expected)
    assert torch.equal(net.mixed.weight.grad.view(EXPERTS, 9, 8, 3, 3), gradient.view(EXPERTS, 12, 8, 3, 3)[:, kept])


def test_a_filter_is_that_of_all_experts(image):
    net = build()
    with torch.no_grad():  # filters 2 and 9 are alike in two experts, 4 and 7 in all three
        kernels = net.mixed.weight.view(EXPERTS, 12, -1)
        kernels[:2, 9], kernels[:, 7] = kernels[:2, 2], kernels[:, 4]
    assert torch.equal(filter_rows(net.mixed), net.mixed.weight.view(EXPERTS, 12, 8, 9).permute(1, 2, 0, 3).flatten(1))
    report = prune_(net, image, Pruning(keep=11 / 12, round_to=1), scope=Scope(include=("mixed",)))
    [group] = report.groups
    assert (group.root, group.after) == ("mixed", 11) and report.removed["mixed"].outputs in ((4,), (7,))


@pytest.mark.parametrize("residual", [False, True])
def test_the_structure_brings_its_sizes_along(image, residual):
    net = build(residual=residual, bias=True)
    small, _ = pruned(net, image)
    again = build(residual=residual, bias=True)
    apply_structure_(again, diff(geometry(net), geometry(small)))
    again.load_state_dict(small.state_dict())
    assert geometry(again) == geometry(small)
    assert torch.equal(again(image), small(image))
    again.mixed.reset_parameters()  # which reads every size that it keeps


def test_it_is_not_decomposed_and_that_is_said():
    targets, skipped = plan_decomposition(build(), Decomposition(rank=1), scope=Scope(), map_sizes={})
    assert [target.names for target in targets] == [("stem",)]
    assert {entry.name: entry.cause.code for entry in skipped}["mixed"] == "mixed-kernel"


def test_a_share_may_be_asked_for_it_alone(image):
    recipe = {"pruning": {"keep": 1.0, "keeps": {"mixed": 0.5}, "round_to": 1}}
    result = compress(build(), image, Recipe.from_dict(recipe))
    assert result.model.mixed.weight_shape == (6, 8, 3, 3)


def test_routing_that_is_given_by_name_is_left_by_position(image):
    """Hooks of a call do not see what is given by name."""

    class Named(Net):
        def forward(self, x):
            x = self.stem(x)
            return self.head(self.mixed(x, routing_weights=self.route(x.mean((2, 3))).sigmoid()))

    torch.manual_seed(0)
    net = Named().double().eval()
    report = prune_(net, image, Pruning(keep=0.5, round_to=1))
    assert {group.root for group in report.groups} == {"stem", "mixed"}
    assert {s.name: s.cause.code for s in blocking(report.skipped)} == {"route": "by-position"}


def test_efficientnet_is_pruned_in_full_and_computes_with_the_kept_numbers():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_cc_b0_4e", num_classes=10).eval()
    result = compress(model, torch.randn(1, 3, 64, 64), Recipe.from_dict({"pruning": {"keep": 0.7}}))
    assert result.report.status == "full" and result.report.pruning.largest_error < 1e-4
    widths = [m.weight_shape[:2] for m in result.model.modules() if isinstance(m, layers.CondConv2d)]
    assert widths[:3] == [(336, 56), (336, 1), (80, 336)] and len(widths) == 24
    result.model.train()(torch.randn(3, 3, 64, 64)).sum().backward()


def test_a_budget_foretells_what_its_pruning_saves(image):
    batches = [torch.randn(8, 3, 11, 11, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    recipe = {
        "budget": {"macs": 0.6, "prune": True},
        "pruning": {"round_to": 1, "min_keep": 0.1},
        "calibration": {"fit": True, "positions": 32},
        "decomposition": {"sweeps": 2, "restarts": 1},
    }
    report = compress(build().float(), image.float(), Recipe.from_dict(recipe), calibration=batches).report
    assert "mixed" in {group.root for group in report.pruning.groups}
    assert report.budget.macs == pytest.approx(report.macs_after / report.macs_before, rel=2e-3)
    assert 0.5 < report.budget.macs <= 0.6
