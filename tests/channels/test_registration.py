"""A user's own block and a user's own operation: registered in a few lines, pruned and verified like any other."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.channels import (
    ChannelGraph,
    ChannelLabels,
    DenseEquivalent,
    LayerType,
    declare,
    layers,
    operations,
    register_layer,
    register_rule,
)
from norton_plugin.recipe import Pruning
from norton_plugin.surgery import prune_


@pytest.fixture
def registries(monkeypatch):
    """What is registered in a test is forgotten after it."""
    monkeypatch.setattr(operations, "_OPERATIONS", dict(operations._OPERATIONS))
    monkeypatch.setattr(operations, "_NUMBERS", dict(operations._NUMBERS))
    monkeypatch.setattr(layers, "_TYPES", dict(layers._TYPES))


class LowRankConv(nn.Module):
    """A convolution whose weight is a product of a mixing matrix (N, R) and a basis (R, C, 3, 3)."""

    def __init__(self, channels: int, filters: int, rank: int) -> None:
        super().__init__()
        self.out_channels = filters
        self.mix = nn.Parameter(torch.randn(filters, rank))
        self.basis = nn.Parameter(torch.randn(rank, channels, 3, 3))
        self.bias = nn.Parameter(torch.randn(filters))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.basis, padding=1)
        y = torch.einsum("nr,brhw->bnhw", self.mix, y) + self.bias[:, None, None]
        assert y.shape[1] == self.out_channels
        return y


def low_rank_layer():
    def refresh_(conv, sizes):
        conv.out_channels = len(conv.mix)

    return LayerType(
        LowRankConv,
        produces=True,
        dense=DenseEquivalent(
            weight=lambda conv: torch.einsum("nr,rckl->nckl", conv.mix, conv.basis),
            forward=lambda conv, weight, x: F.conv2d(x, weight, conv.bias, padding=1),
            cuts={0: [("mix", 0)], 1: [("basis", 1)]},
        ),
        refresh=refresh_,
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), LowRankConv(8, 6, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )
    return model.eval()


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.usefixtures("registries")
def test_a_block_of_a_user_is_pruned_like_a_layer():
    register_layer(low_rank_layer())
    model = network()
    block = model[2]
    graph = ChannelGraph(model, IMAGE)
    assert [(g.root, g.size, g.blocked and g.blocked.code) for g in graph.groups()] == [
        ("0", 8, None),
        ("2", 6, None),
        ("5", 4, "model-output"),
    ]
    # By hand: the dense network of the kept channels.
    kept, inner = [0, 1, 4, 6], [1, 2, 5]
    weight = torch.einsum("nr,rckl->nckl", block.mix, block.basis)[inner][:, kept]
    with torch.no_grad():
        y = F.conv2d(model[0](IMAGE)[:, kept].relu(), weight, block.bias[inner], padding=1)
        norm = model[3]
        y = F.batch_norm(y, norm.running_mean[inner], norm.running_var[inner], norm.weight[inner], norm.bias[inner])
        expected = F.conv2d(y.relu(), model[5].weight[:, inner], model[5].bias)
        with graph.masked([("0", [2, 3, 5, 7]), ("2", [0, 3, 4])]):
            torch.testing.assert_close(model(IMAGE), expected)
        graph.prune("0", [2, 3, 5, 7])
        graph.prune("2", [0, 3, 4])
        torch.testing.assert_close(model(IMAGE), expected)
    assert block.mix.shape == (3, 4) and block.basis.shape == (4, 4, 3, 3) and block.out_channels == 3


@pytest.mark.usefixtures("registries")
def test_a_block_of_a_user_is_pruned_by_its_filters_and_verified():
    register_layer(low_rank_layer())
    report = prune_(network(), IMAGE, Pruning(keep=0.5, round_to=1))
    assert {group.root: (group.before, group.after) for group in report.groups} == {"0": (8, 4), "2": (6, 3)}
    assert report.largest_error < 1e-5


def test_without_registration_its_filters_are_no_channels_to_prune():
    assert [group.root for group in ChannelGraph(network(), IMAGE).groups()] == ["0", "5"]


@pytest.mark.usefixtures("registries")
def test_subclasses_are_known_and_a_second_entry_is_refused():
    layer = register_layer(low_rank_layer())
    with pytest.raises(ValueError, match="LowRankConv is registered already; pass replace=True"):
        register_layer(low_rank_layer())
    assert layers.layer_type(type("Sub", (LowRankConv,), {})(2, 2, 1)) is layer
    other = register_layer(LayerType(LowRankConv), replace=True)
    assert layers.layer_type(LowRankConv(2, 2, 1)) is other
    assert layers.layer_type(CPDBlock(2, 2, 3, 1)).produces and layers.layer_type(nn.ReLU()) is None
    assert layers.layer_type(nn.ConvTranspose1d(2, 2, 1)).kind is nn.modules.conv._ConvNd


class FlatNorm(nn.Module):
    """No LayerNorm, but it keeps its size as one."""

    def __init__(self) -> None:
        super().__init__()
        self.normalized_shape = (4,)


def test_a_norm_is_recognised_by_the_attribute_that_it_keeps():
    assert layers.layer_type(FlatNorm()).kind is nn.LayerNorm


@pytest.fixture(scope="module")
def library():
    """An operation outside of PyTorch: a gate that works element by element, and one that sorts channels."""
    library = torch.library.Library("norton_test", "DEF")
    for name, function in (("hard_gate", lambda x: x * (x > 0.1)), ("hardest", lambda x: x.sort(1).values)):
        library.define(f"{name}(Tensor x) -> Tensor")
        library.impl(name, function, "CompositeExplicitAutograd")
    yield torch.ops.norton_test
    library._destroy()


class Gated(nn.Module):
    def __init__(self, gate) -> None:
        super().__init__()
        self.gate, self.stem, self.head = gate, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gate(self.stem(x)))


def blocked(model):
    return {group.root: group.blocked and group.blocked.text for group in ChannelGraph(model, IMAGE).groups()}


@pytest.mark.usefixtures("registries")
def test_an_operation_of_a_user_is_followed(library):
    model = Gated(library.hard_gate).eval()
    assert blocked(model)["stem"] == "no rule follows channels through norton_test::hard_gate"

    @register_rule("norton_test::hard_gate")
    def hard_gate(trace, call):
        return trace.labels_of(call.args[0])

    assert blocked(model)["stem"] is None
    report = prune_(model, IMAGE, Pruning(keep=0.5, round_to=1))
    assert [(group.root, group.after) for group in report.groups] == [("stem", 4)] and report.largest_error < 1e-5


@pytest.mark.usefixtures("registries")
def test_an_operation_is_not_taken_for_pytorchs_own_of_the_same_name(library):
    declare("norton_test::hardest", selects=True)
    graph = ChannelGraph(Gated(library.hardest).eval(), IMAGE)
    assert graph.selects and graph.groups()[0].blocked.code == "no-rule"
    assert not ChannelGraph(Gated(torch.relu), IMAGE).selects


@pytest.mark.usefixtures("registries")
def test_two_rules_for_one_operation_are_refused_and_replaced_when_asked():
    @register_rule("relu_like")
    def first(trace, call):
        return ChannelLabels()

    with pytest.raises(ValueError, match=r"relu_like has the rule .*\.first already; .*\.second must not"):

        @register_rule("new_name", "relu_like")
        def second(trace, call):
            return ChannelLabels()

    assert operations._OPERATIONS["relu_like"].rule is first and "new_name" not in operations._OPERATIONS
    declare("relu_like", replace=True)
    assert operations._OPERATIONS["relu_like"].rule is None


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mul", "FACTOR"),
        ("__rmul__", "FACTOR"),
        ("mul_", "FACTOR"),
        ("__truediv__", "DIVISOR"),
        ("__rtruediv__", "VALUE"),
        ("div_", "DIVISOR"),
        ("__iadd__", "VALUE"),
        ("pow", "VALUE"),
        ("full_like", "VALUE"),
        ("scaled_dot_product_attention", "VALUE"),
        ("view", "SIZE"),
        ("zeros", "SIZE"),
    ],
)
def test_what_a_number_is_to_a_function(name, number):
    assert operations.number_in(name) is operations.Number[number]
