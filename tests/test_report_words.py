"""What reports say of a layer: level, rank, components, and components that cancel each other."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from norton_plugin import Budget, Recipe, SurgeryError, compress
from norton_plugin.budget.plan import BudgetPlan, Milliseconds, PlannedGroup, PlannedLayer
from norton_plugin.pabs import pabs_distance
from norton_plugin.pipeline import (
    LayerReport,
    budget_in_words,
    in_words,
    level_cells,
    note_on_distances,
)
from norton_plugin.pipeline import report as pipeline_report
from norton_plugin.pipeline.warned import (
    warning_of_large_components,
    warning_of_missed_time,
    warning_of_pruning_below_budget,
    warning_of_time_beside_layers,
)
from norton_plugin.surgery.report import DecomposedLayer, DecompositionReport


def layer(**settings):
    return LayerReport("conv", "CPDBlock", 100, 50, 100, 50, nmse=0.25, kept=1.0, **settings)


@pytest.mark.parametrize(
    ("settings", "cells", "words"),
    [
        ({"rank": 2, "level": "filter"}, ("filter", "2", "-"), "level filter, rank 2, NMSE 0.2500"),
        (
            {"rank": 6, "level": "cluster", "clusters": 4, "components": 24},
            ("cluster (4)", "-", "24"),
            "level cluster (4), 24 components, NMSE 0.2500",
        ),
        (
            {"rank": 9, "level": "layer", "clusters": 1, "components": 9},
            ("layer", "-", "9"),
            "level layer, 9 components, NMSE 0.2500",
        ),
        ({"rank": None}, ("-", "-", "-"), "dense"),
    ],
)
def test_level_rank_and_components(settings, cells, words):
    assert level_cells(layer(**settings)) == cells
    assert in_words(layer(**settings)) == words


@pytest.fixture(scope="module")
def compressed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    layers = {"1": {"level": "cluster", "clusters": 4, "components": 8}, "2": {"level": "filter", "rank": 2}}
    layers |= {"3": {"components": 12}, "0": {"components": None}}
    decomposition = {"level": "layer", "components": 5, "linear": True, "layers": layers}
    recipe = Recipe.from_dict({"decomposition": decomposition})
    return compress(model, torch.randn(1, 3, 8, 8), recipe)


def test_every_level_has_its_row(compressed):
    rows = {row.name: row for row in compressed.report.layers}
    assert {name: level_cells(row) for name, row in rows.items()} == {
        "0": ("-", "-", "-"),
        "1": ("cluster (4)", "-", "8"),
        "2": ("filter", "2", "-"),
        "3": ("layer", "-", "12"),
        "6": ("layer", "-", "5"),
    }
    assert [(row.kind, row.rank, row.clusters) for row in rows.values()] == [
        ("Conv2d", None, None),
        ("CPDBlock", 2, 4),
        ("CPDBlock", 2, None),
        ("CPDBlock", 6, 2),
        ("CPDLinear", 5, 1),
    ]
    # M (C + Kh + Kw) + N M / K a position; a group of the third sees 8 channels
    assert rows["1"].macs_after == 8 * 8 * (8 * (16 + 3 + 3) + 16 * 8 // 4)
    assert rows["3"].macs_after == 8 * 8 * (12 * (8 + 3 + 3) + 16 * 12 // 2)
    assert rows["6"].macs_after == rows["6"].parameters_after - 10 == 5 * (16 + 10)
    entry = compressed.report.to_dict()["layers"][1]
    assert (entry["level"], entry["clusters"], entry["components"], entry["rank"]) == ("cluster", 4, 8, 2)


def test_a_compressed_model_says_what_it_is_when_it_is_pruned_later(compressed):
    recipe = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 1}})
    _, report = compress(compressed.model, torch.randn(1, 3, 8, 8), recipe)
    cells = {row.name: level_cells(row) for row in report.layers}
    assert cells["2"] == ("filter", "2", "-")
    assert cells["6"] == ("layer", "-", "5")


def test_large_components_are_named(compressed):
    names = {"nmse_mean": 0.1, "nmse_worst": 0.2, "fallback_filters": 0}
    sizes = {"a": 9.9, "b": 12.4, "c": 340.2, "d": None}
    layers = tuple(DecomposedLayer((name,), 2, **names, largest_component=size) for name, size in sizes.items())

    def warning(*chosen):
        return warning_of_large_components(DecompositionReport(chosen, ()))

    assert warning(layers[0], layers[3]) is None
    assert warning(layers[1]).startswith("A component of b has 12 times the norm of the weight it is part of: its ")
    assert "of c has 340 times" in warning(*layers) and "(the largest of 2 such layers)" in warning(*layers)


def test_a_report_warns_of_large_components(compressed):
    """Wherever a report is read: its text, the command, the log of a run, the page."""
    found = DecomposedLayer(("c",), 2, nmse_mean=0.1, nmse_worst=0.2, fallback_filters=0, largest_component=50.0)
    report = replace(compressed.report, decomposition=DecompositionReport((found,), ()))
    assert any("A component of c has 50 times" in words for words in report.warnings)
    assert "warning: A component of c has 50 times" in str(report)


@pytest.mark.parametrize(
    ("groups", "macs", "params", "warned"),
    [
        ((), 0.5, 0.7, False),
        ((), 0.491, 0.69, False),  # within the 2 % that a budget is met to
        ((), 0.21, 0.3, True),
        ((), 0.5, 0.3, True),
        ((PlannedGroup("conv", ("conv",), 16, 8, 0.1),), 0.21, 0.3, False),  # the plan itself pruned
    ],
)
def test_pruning_below_a_budget_says_what_is_left_and_how_to_plan_both(groups, macs, params, warned):
    plan = BudgetPlan(Budget(macs=0.5, prune=bool(groups)), 0.5, 0.7, "weights", 0.0, (), groups=groups)
    words = warning_of_pruning_below_budget(plan, macs=macs, params=params)
    assert (words is not None) == warned
    if words:
        assert "(macs=0.5)" in words and f"{macs:.3g} of the MACs" in words and "budget.prune (--prune)" in words


def test_a_share_of_channels_beside_a_budget_is_warned_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()
    recipe = {"decomposition": {"level": "layer"}, "budget": {"macs": 0.5}, "pruning": {"keep": 0.5}}
    report = compress(model, torch.randn(1, 3, 12, 12), Recipe.from_dict(recipe)).report
    assert report.macs_after < 0.4 * report.macs_before
    assert any("pruning.keep removed channels" in words for words in report.warnings)


def test_what_the_plan_is_warned_of_is_in_the_report(monkeypatch):
    monkeypatch.setattr(pipeline_report, "warning_of_time_beside_layers", lambda plan: f"time of {plan.budget.macs}")
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
    recipe = Recipe.from_dict({"decomposition": {"level": "layer"}, "budget": {"macs": 0.5}})
    assert "time of 0.5" in compress(model, torch.randn(1, 3, 12, 12), recipe).report.warnings


def _timed(share, *, measured=True, **budget):
    milliseconds = Milliseconds(10.0, 10 * share, 10 * share if measured else None, plans=5)
    return BudgetPlan(Budget(**budget), share, 1.0, "weights", 0.0, (), latency=share, milliseconds=milliseconds)


def test_one_share_of_all_channels_and_phases_out_of_reach_are_named():
    plan = replace(_timed(0.5, latency=0.5, prune=True), keep=0.625, phases="even pruning")
    plan = replace(plan, divergence={"even pruning": 0.25}, missed=("hybrid", "decomposition"))
    words = budget_in_words(plan)
    assert "no layer decomposed; 0.625 of the channels asked of every group that may be pruned" in words
    assert words.endswith("even pruning 0.25; kept: even pruning; out of reach: hybrid, decomposition")
    assert "predicted" not in words  # nothing foretold its time


def test_time_that_does_not_lie_in_layers_is_named_with_what_to_do():
    plan = replace(_timed(0.48, latency=0.5), macs=0.15)
    words = warning_of_time_beside_layers(plan)
    assert words.startswith("To reach 48% of the time, 15% of the MACs are left")
    assert "budget.prune (--prune, with images and --calibrate)" in words
    assert warning_of_time_beside_layers(replace(plan, macs=0.3)) is None
    assert warning_of_time_beside_layers(replace(plan, budget=Budget(latency=0.5, prune=True))) is None
    assert warning_of_time_beside_layers(replace(plan, budget=Budget(macs=0.5), milliseconds=None)) is None
    assert warning_of_time_beside_layers(replace(plan, budget=Budget(macs=0.2, latency=0.9))) is None
    assert warning_of_time_beside_layers(replace(_timed(2.0, latency=0.5), macs=0.1)) is None
    table = warning_of_time_beside_layers(replace(_timed(0.48, measured=False, latency=0.5), macs=0.15))
    assert "leave budget.table out" in table


def test_a_missed_budget_of_milliseconds_says_what_was_asked_reached_and_what_to_do():
    assert warning_of_missed_time(_timed(0.6, latency=0.5)) == (
        "The budget of milliseconds was missed by 20.0%: asked for 0.5 of the dense model's time, reached 0.6 "
        "(measured as delivered). Aim lower (budget.latency=0.417, --budget latency=0.417), repeat on a quiet machine, "
        "or give the times of one (budget.table, --latency-table)."
    )
    assert warning_of_missed_time(_timed(0.4, measured=False, latency=0.5)) == (
        "The budget of milliseconds was missed by 20.0%: asked for 0.5 of the dense model's time, reached 0.4 "
        "(predicted by the table that was given). Aim higher (budget.latency=0.625, --budget latency=0.625)."
    )


@pytest.mark.parametrize(
    ("share", "budget", "missed"),
    [
        (0.5099, {"latency": 0.5}, False),
        (0.5101, {"latency": 0.5}, True),
        (0.4899, {"latency": 0.5}, True),
        (0.4899, {"latency": 0.5, "macs": 0.3}, False),  # the other budget asks for less
        (0.5101, {"latency": 0.5, "macs": 0.3}, True),
    ],
)
def test_two_per_cent_are_no_miss_nor_is_what_another_budget_saves(share, budget, missed):
    assert (warning_of_missed_time(_timed(share, **budget)) is not None) == missed


def test_no_aim_is_named_that_is_no_budget():
    assert "Aim higher, repeat on a quiet machine" in warning_of_missed_time(_timed(0.0, latency=0.5))


def test_a_plan_without_milliseconds_misses_none():
    assert warning_of_missed_time(BudgetPlan(Budget(macs=0.5), 0.6, 0.6, "weights", 0.0, ())) is None


def test_blocks_of_an_earlier_compression_stay_and_are_told_once(compressed):
    recipe, example = Recipe.from_dict({"decomposition": {"rank": 1, "sweeps": 3}}), torch.randn(1, 3, 8, 8)
    small, report = compress(compressed.model, example, recipe)
    assert [layer.names for layer in report.decomposition.layers] == [("0",)] and small[2].rank == 2
    left = {entry.name: entry.code for entry in report.decomposition.skipped}
    assert left == dict.fromkeys("1236", "decomposed")
    assert report.warnings == (
        "An earlier compression made 4 blocks, which keep their level and rank: no layer is decomposed twice. For "
        "other sizes compress the dense model.",
    )
    pruned = compress(small, example, Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 1}})).report
    assert pruned.warnings == () and pruned.decomposition.skipped == ()
    scoped = Recipe.from_dict({"decomposition": {"rank": 1, "sweeps": 3}, "scope": {"include": ["0", "1"]}})
    (warning,) = compress(compressed.model, example, scoped).report.warnings
    assert warning.startswith("An earlier compression made 1 block, which keeps its level and rank: ")
    with pytest.raises(SurgeryError, match=r"no layer is eligible: decomposed already: .* \(5 x\)"):
        compress(small, example, recipe)


def _tied(pairs):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2 * pairs)))
    for first, second in zip(model[::2], model[1::2], strict=True):
        second.weight = first.weight
    return model


def test_tied_layers_that_are_parted_are_warned_of(caplog):
    recipe, example = Recipe.from_dict({"decomposition": {"rank": 1, "sweeps": 3}}), torch.randn(1, 8, 8, 8)
    report = compress(_tied(1), example, recipe).report
    (warning,) = report.warnings
    assert warning.startswith("Tied layers are tied no longer: 0 and 1 held one parameter. Each block has factors of ")
    assert "scope.exclude" in warning
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [warning]
    assert str(report).splitlines()[1:] == [f"warning: {warning}"]
    assert str(report).startswith(f"MACs {report.macs_before} -> {report.macs_after}, parameters ")
    assert report.to_dict()["warnings"] == [warning]
    caplog.clear()
    several = compress(_tied(5), example, recipe, on_step=lambda name: None).report
    assert "4 and 5 held one parameter; and 2 more. Each" in several.warnings[0] and not caplog.records


def test_where_only_one_of_tied_layers_becomes_a_block_the_others_keep_the_weight():
    recipe = Recipe.from_dict({"decomposition": {"rank": 1, "sweeps": 3}, "scope": {"exclude": ["1"]}})
    (warning,) = compress(_tied(1), torch.randn(1, 8, 8, 8), recipe).report.warnings
    assert "0 and 1 held one parameter, which stays in 1. " in warning


def _pruned(rank):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)]
    recipe = Recipe.from_dict({"decomposition": {"rank": rank}, "pruning": {"keep": 0.5, "round_to": 1}})
    return compress(nn.Sequential(*layers), torch.randn(1, 3, 8, 8), recipe).report


def test_factors_that_tell_nothing_are_told_once_per_model():
    assert note_on_distances(_pruned(1)) is None
    note = note_on_distances(_pruned(3))
    assert note.startswith("PABS compared 1 of 2 pruned groups by a part of the factors, which alone decided: ")
    for name in ("vertical", "horizontal"):
        assert f"{name}: 3 components in 3 dimensions span the whole space (1 x)" in note
    assert "\n" not in note


@pytest.mark.parametrize("kernel", ["3x3", "5x5", "7x7", "1x7"])
def test_the_page_says_which_ranks_inform(repository, kernel):
    page = (repository / "docs/method.md").read_text()
    (row,) = re.findall(rf"^  \| {kernel} \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    sizes = dict(zip(("vertical", "horizontal"), map(int, kernel.split("x")), strict=True))
    told = [range(1, int(words[-1]) + 1) if words != "none" else () for words in row[1:]]
    for rank in range(1, 8):
        distance = pabs_distance([torch.randn(4, rank, size) for size in (16, *sizes.values())])
        assert [name in distance.informative for name in sizes] == [rank in ranks for ranks in told]
        assert "head" in distance.informative and row[0].startswith("R < C")


@pytest.mark.parametrize(
    ("dense", "pruned", "words"),
    [
        (0, 0, "1 at level layer"),
        (1, 1, "1 at level layer; 1 layer stays dense; 1 group of channels pruned"),
        (2, 3, "1 at level layer; 2 layers stay dense; 3 groups of channels pruned"),
    ],
)
def test_a_budget_counts_layers_and_groups(dense, pruned, words):
    layers = [PlannedLayer("a", "layer", 4, 4, 0.5, 0.1)] + [PlannedLayer("b", None, None, None, 1.0, 0.0)] * dense
    groups = (PlannedGroup("c", ("c",), 8, 4, 0.1),) * pruned
    plan = BudgetPlan(Budget(macs=0.5), 0.49, 0.6, "weights", 0.1, tuple(layers), groups)
    assert budget_in_words(plan) == f"budget of the decomposed model, MACs 0.5: 0.4900 of the dense one: {words}"


def test_it_is_told_that_no_plan_which_prunes_was_carried_out():
    layer = PlannedLayer("a", "layer", 4, 4, 0.5, 0.1)
    plan = BudgetPlan(Budget(macs=0.5, prune=True), 0.49, 0.6, "divergence", 0.1, (layer,))
    alone = budget_in_words(replace(plan, divergence={"decomposition": 0.1}))
    why = "(no plan that removes channels was foretold to be better and came within the budget)"
    assert alone.endswith(f"kept: decomposition {why}")
    both = budget_in_words(replace(plan, divergence={"decomposition": 0.1, "hybrid": 0.2}))
    assert both.endswith("decomposition 0.1, hybrid 0.2; kept: decomposition")


class _Branches(nn.Module):
    """A block as timm's RepVGG has it: two branches, or the convolution that they are joined to."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.reparam_conv: nn.Module | None = None

    def reparameterize(self) -> None:
        self.reparam_conv = nn.Conv2d(8, 8, 3, padding=1)
        del self.large, self.small

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.large(x) + self.small(x) if self.reparam_conv is None else self.reparam_conv(x)


@pytest.mark.parametrize("joined", [False, True])
def test_branches_that_are_joined_for_inference_are_warned_of(joined):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), _Branches(), _Branches()).eval()
    for block in model[1:]:
        if joined:
            block.reparameterize()
    recipe = Recipe.from_dict({"decomposition": {"level": "layer", "share": 0.5}})
    report = compress(model, torch.randn(1, 3, 8, 8), recipe).report
    told = [words for words in report.warnings if "branches for training" in words]
    assert [words.startswith("2 blocks of the model have") for words in told] == ([] if joined else [True])
    assert report.to_dict()["branched"] == (0 if joined else 2)
