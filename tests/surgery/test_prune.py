"""prune_ and its parts: counts, groups, verification, rollback."""

import copy
import itertools

import pytest
import torch
import torch_pruning as tp
from torch import nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.channels import ChannelGraph
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.integrations.torch_pruning import CPDBlockPruner, PABSImportance
from norton_plugin.modules.running import relative_error
from norton_plugin.modules.snapshot import Snapshot
from norton_plugin.pabs import keep_indices
from norton_plugin.recipe import Decomposition, Pruning, Scope
from norton_plugin.surgery import decompose_, prune_, surgeon
from norton_plugin.surgery.counts import channels_to_keep
from norton_plugin.surgery.distances import fold, group_distance, layer_distance
from norton_plugin.surgery.report import blocking


@pytest.mark.parametrize(
    ("size", "keep", "options", "expected"),
    [
        (64, 0.4, {}, 25),
        (512, 0.2, {}, 102),
        (12, 0.92, {}, 11),
        (64, 0.7, {"round_to": 8}, 48),
        (16, 0.7, {"round_to": 8}, 16),
        (24, 0.7, {"round_to": 8}, 16),
        (4, 0.5, {"round_to": 8}, 4),
        (100, 0.01, {}, 1),
        (128, 0.7, {"parts": 32}, 96),
        (128, 0.7, {"parts": 32, "round_to": 8}, 96),
        (10, 1.0, {"round_to": 8}, 10),
        (64, 0.05, {"round_to": 8}, 8),
    ],
)
def test_channel_counts(size, keep, options, expected):
    assert channels_to_keep(size, keep, **options) == expected


def test_no_count_is_far_below_the_share():
    for size in range(2, 300):
        for keep in (0.3, 0.5, 0.7, 0.9):
            count = channels_to_keep(size, keep, round_to=8)
            assert 1 <= count <= size and count >= size * (keep - 0.1) - 1e-9


def test_folding_adds_the_parts():
    matrix = torch.arange(16.0).reshape(4, 4)
    assert fold(matrix, 2).tolist() == [[0 + 10, 1 + 11], [4 + 14, 5 + 15]]


def test_coupled_layers_decide_together(residual):
    decompose_(residual, Decomposition(rank=1))
    graph = ChannelGraph(residual, torch.zeros(1, 3, 8, 8))
    stem = next(g for g in graph.groups() if g.root in ("stem", "layers.0.conv2", "layers.1.conv2"))
    assert {m.name for m in stem.producers} == {"stem", "layers.0.conv2", "layers.1.conv2"}
    combined, _ = group_distance([(m.module, m.indices, m.roots) for m in stem.producers], size=16)
    alone = [layer_distance(m.module).matrix for m in stem.producers]
    expected = sum(d / (d.sum() / (16 * 15)) for d in alone)
    torch.testing.assert_close(combined, expected)


@pytest.mark.parametrize("rank", [None, 2])
def test_pruned_model_equals_the_masked_one(residual, image, rank):
    if rank:
        decompose_(residual, Decomposition(rank=rank, allow_more_macs=True))
    reference = copy.deepcopy(residual)
    report = prune_(residual, image, Pruning(keep=0.5, round_to=1))
    assert [(g.before, g.after) for g in report.groups] == [(16, 8)] * 3
    assert all(g.error is not None and g.error < 1e-5 for g in report.groups)
    assert residual.stem.out_channels == residual.head.in_features == residual.layers[1].norm2.num_features == 8
    assert [s.name for s in report.skipped] == ["head"] and report.skipped[0].code == "model-output"
    assert residual(image).shape == (2, 10)
    assert (residual(image) - reference(image)).abs().max() > 1e-3
    assert report.verified and report.verify_seconds > 0


def test_the_kept_filters_are_those_of_the_removal_order(residual, image):
    decompose_(residual, Decomposition(rank=2))
    block = residual.layers[0].conv1
    expected = keep_indices(layer_distance(block).matrix, 6)
    factors = block.vertical.detach()[expected]
    prune_(residual, image, Pruning(keep=1.0, keeps={"layers.0.conv1": 6 / 16}, round_to=1))
    assert torch.equal(residual.layers[0].conv1.vertical, factors)


def test_group_norm_loses_the_same_channels_in_every_group(group_normed, image):
    report = prune_(group_normed, image, Pruning(keep=0.5, round_to=1))
    assert {(g.before, g.after) for g in report.groups} == {(16, 8)}
    assert group_normed.layers[0].norm1.num_groups == 4 and group_normed.layers[0].norm1.num_channels == 8
    assert max(g.error for g in report.groups) < 1e-5


def test_concatenation_groups_and_flattening(dense, image):
    report = prune_(dense, image, Pruning(keep=0.5, round_to=1))
    pruned = {g.root: (g.before, g.after) for g in report.groups}
    assert pruned == {"a": (16, 8), "grouped": (32, 16), "pointwise": (8, 4), "fc": (12, 6)}
    assert dense.fc.in_features == 4 * 16 and dense.depthwise.groups == 16
    reasons = {s.name: s.code for s in report.skipped}
    assert list(reasons) == ["out"] and reasons["out"] == "model-output"
    assert max(g.error for g in report.groups) < 1e-5


class Averaging(nn.Module):
    """Divides by the number of channels, read where no trace sees it: what it computes depends on a width."""

    def forward(self, x):
        return x / len(x[0])


def test_a_wrong_group_is_rolled_back_and_the_others_stand(image):
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), Averaging(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.Flatten()
    )
    untouched = net[0].weight
    report = prune_(net, image, Pruning(keep=0.5, round_to=1))
    assert [g.root for g in report.groups] == ["2"] and net[2].out_channels == 8
    assert net[0].weight is untouched and net[2].in_channels == 16
    reasons = {s.name: s.code for s in report.skipped}
    assert reasons["0"] == "differs"


def test_without_verification_a_wrong_group_goes_through(image):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), Averaging(), nn.Conv2d(16, 4, 3), nn.Flatten())
    report = prune_(net, image, Pruning(keep=0.5, round_to=1), verify=False)
    assert not report.verified and report.groups[0].error is None and net[0].out_channels == 8


def test_groups_that_cannot_be_verified_in_time_are_left_and_listed(residual, image, monkeypatch):
    clock = itertools.count(step=100.0)
    monkeypatch.setattr(surgeon.time, "perf_counter", lambda: next(clock))
    report = prune_(residual, image, Pruning(keep=0.5, round_to=1), require=False)
    assert report.groups == () and residual.stem.out_channels == 16
    assert {s.code for s in report.skipped} >= {"proof-time"}


def test_a_model_that_cannot_be_traced_is_listed_where_pruning_is_optional(residual):
    report = prune_(residual, torch.zeros(1, 5, 8, 8), Pruning(keep=0.5), require=False)
    assert report.groups == () and report.skipped[0].name == "(whole model)"


def test_snapshot_brings_back_the_very_same_objects(residual, image):
    graph = ChannelGraph(residual, image)
    before = dict(residual.named_parameters())
    expected, text = residual(image), repr(residual)
    snapshot = Snapshot(residual.modules(), graph.bookkeeping())
    graph.prune("layers.0.conv1", [0, 1])
    assert repr(residual) != text
    snapshot.restore_()
    assert repr(residual) == text and torch.equal(residual(image), expected)
    assert all(p is before[name] for name, p in residual.named_parameters())
    graph.prune("layers.0.conv1", [5])
    assert residual(image).shape == (2, 10) and residual.layers[0].conv1.out_channels == 15


def test_masking_leaves_the_model_as_it_was(group_normed, image):
    graph = ChannelGraph(group_normed, image)
    before, state = group_normed(image), copy.deepcopy(group_normed.state_dict())
    with graph.masked([("layers.0.conv1", [0, 4, 8, 12])]):
        assert (group_normed(image) - before).abs().max() > 1e-4
    assert torch.equal(group_normed(image), before)
    assert all(torch.equal(v, state[k]) for k, v in group_normed.state_dict().items())


def test_relative_error():
    assert relative_error([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 4.0])]) == 0.5
    assert relative_error([torch.ones(2)], [torch.ones(3)]) == float("inf")
    assert relative_error([torch.tensor([float("nan")])], [torch.ones(1)]) == float("inf")
    masked = torch.tensor([float("-inf"), 1.0, 4.0])
    assert relative_error([masked], [masked.clone()]) == 0.0
    assert relative_error([masked + torch.tensor([0.0, 0.0, 1.0])], [masked]) == 0.25
    assert relative_error([-masked], [masked]) == float("inf")
    assert relative_error([torch.tensor([float("nan")])], [torch.tensor([float("nan")])]) == float("inf")


def test_tracing_restores_flags_and_works_on_frozen_models(residual, image):
    residual.requires_grad_(False)
    residual.layers[0].train()
    prune_(residual, image, Pruning(keep=0.5, round_to=1))
    assert residual.layers[0].conv1.training and not residual.layers[1].training
    assert residual.layers[0].conv1.out_channels == 8
    assert not any(p.requires_grad for p in residual.parameters())


def test_scope_ignored_and_linear(residual, image):
    with pytest.raises(SurgeryError, match="is ignored"):
        prune_(residual, image, Pruning(keep=0.5), ignored=[residual])
    report = prune_(residual, image, Pruning(keep=0.5, round_to=1), scope=Scope(include=("*.conv1", "*.norm1")))
    assert {g.root for g in report.groups} == {"layers.0.conv1", "layers.1.conv1"}


def test_global_ranking_spends_the_share_over_the_model(residual, image):
    decompose_(residual, Decomposition(rank=1))
    report = prune_(residual, image, Pruning(keep=0.5, round_to=1, global_ranking=True, min_keep=0.2))
    kept = [g.after / g.before for g in report.groups]
    assert sum(g.after for g in report.groups) == pytest.approx(0.5 * sum(g.before for g in report.groups), rel=0.2)
    assert min(kept) >= 0.2


@pytest.mark.parametrize(
    ("pruning", "error", "message"),
    [
        (Pruning(keep=0.5, keeps={"layer9": 0.5}), RecipeError, "pruning.keeps pattern 'layer9'"),
        (Pruning(keep=0.99), SurgeryError, "come to 16 in multiples of 8"),
    ],
)
def test_bad_requests_change_nothing(residual, image, pruning, error, message):
    text = repr(residual)
    with pytest.raises(error, match=message):
        prune_(residual, image, pruning)
    assert repr(residual) == text


def test_a_wrong_example_is_an_error_of_ours(residual):
    with pytest.raises(SurgeryError, match="cannot be traced"):
        prune_(residual, torch.zeros(1, 5, 8, 8), Pruning(keep=0.5))


def test_plain_torch_pruning_use(residual, image):
    decompose_(residual, Decomposition(rank=2))
    pruner = tp.pruner.BasePruner(
        residual, image, importance=PABSImportance(), pruning_ratio=0.5,
        customized_pruners={CPDBlock: CPDBlockPruner()}, root_module_types=[nn.Conv2d, nn.Linear, CPDBlock],
        ignored_layers=[residual.head], in_channel_groups={}, out_channel_groups={}, num_heads={}, channel_groups={},
    )  # fmt: skip
    block = residual.layers[0].conv1
    expected = block.vertical.detach()[keep_indices(layer_distance(block).matrix, 8)]
    pruner.step()
    assert residual.layers[0].conv1.out_channels == residual.layers[0].conv2.in_channels == 8
    assert torch.equal(block.vertical, expected)
    assert residual(image).shape == (2, 10)


def test_an_example_of_zeros_does_not_hide_a_mistake():
    """On a constant image a convolution without bias yields zeros, and any group would seem right."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), Averaging(), nn.Conv2d(16, 4, 3, bias=False), nn.Flatten())
    report = prune_(net, torch.zeros(2, 3, 8, 8), Pruning(keep=0.5, round_to=1), require=False)
    assert report.groups == () and any(s.code == "differs" for s in report.skipped)


def test_layers_that_compute_from_constants_are_pruned_too(image):
    """A table of positions goes through an MLP whose hidden width is free, as in Swin V2."""

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.randn(36, 2))
            self.mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x) + self.mlp(self.table).T.reshape(1, 4, 6, 6)

    net = Biased().eval()
    report = prune_(net, torch.randn(2, 3, 8, 8), Pruning(keep=0.5, round_to=1))
    [group] = [g for g in report.groups if g.root == "mlp.0"]
    assert net.mlp[0].out_features == net.mlp[2].in_features == 8 and group.error < 1e-6


def test_layers_that_do_not_run_take_nothing_from_the_result(residual, image):
    residual.auxiliary = nn.Linear(16, 4)
    report = prune_(residual, image, Pruning(keep=0.5, round_to=1))
    [entry] = [s for s in report.skipped if s.name == "auxiliary"]
    assert entry.code == "not-run" and blocking([entry]) == []
