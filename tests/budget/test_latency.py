"""Budgets of milliseconds, with a stopwatch that counts MACs: time is then a cost whose truth is known."""

import json

import pytest
import torch

from norton_plugin import Budget, Recipe, RecipeError, compress
from norton_plugin.latency import TABLE, read_table
from norton_plugin.pipeline import budget_in_words
from norton_plugin.recipe import Calibration, Decomposition, Pruning
from tests.calibration.test_calibrate import images
from tests.networks import Residual, settle
from tests.stopwatch import counted_macs


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return settle(Residual(32)), images(2)[0]


def recipe(*, level="layer", **budget) -> Recipe:
    return Recipe(budget=Budget(**budget), decomposition=Decomposition(level=level, restarts=1, sweeps=5))


def hybrid(**budget) -> Recipe:
    return Recipe(
        budget=Budget(prune=True, **budget),
        decomposition=Decomposition(level="layer", restarts=1, sweeps=5),
        pruning=Pruning(criterion="l2", round_to=1),
        calibration=Calibration(fit=True, positions=32),
    )


@pytest.mark.parametrize(("level", "share"), [("layer", 0.5), ("auto", 0.7)])
def test_where_time_is_macs_the_plan_is_that_of_macs(monkeypatch, network, level, share):
    with counted_macs(monkeypatch):
        found = compress(*network, recipe(level=level, latency=share)).report
    same = compress(*network, recipe(level=level, macs=share)).report
    plan = found.budget
    assert plan.latency == pytest.approx(plan.macs, rel=0.02)  # sizes between measured ones lie on a line
    assert plan.macs == pytest.approx(same.budget.macs, rel=0.03)
    assert plan.milliseconds.plans == 1
    assert plan.milliseconds.share == pytest.approx(found.macs_after / found.macs_before, rel=1e-6)
    assert plan.milliseconds.dense == pytest.approx(found.macs_before * 1e-6)
    assert abs(plan.milliseconds.share / share - 1) <= 0.02
    assert plan.budget.latency == share and f"milliseconds {share:g}: " in budget_in_words(plan)


def test_a_model_that_is_slower_than_its_layers_foretell_is_planned_again(monkeypatch, network):
    """Whole compressed models take 1.3 times as long as they should: the second plan makes up for it."""
    with counted_macs(monkeypatch, slower=lambda: 1.3):
        result = compress(*network, recipe(latency=0.6))
    plan = result.report.budget
    assert plan.milliseconds.plans == 2
    assert abs(plan.milliseconds.share / 0.6 - 1) <= 0.02
    assert plan.macs == pytest.approx(0.6 / 1.3, rel=0.03)
    assert result.latency.correction == pytest.approx(1.3, rel=0.02)


def test_nothing_is_decomposed_before_the_last_plan(monkeypatch, network):
    steps = []
    with counted_macs(monkeypatch, slower=lambda: 1.3):
        compress(*network, recipe(latency=0.6), on_step=steps.append)
    assert steps == ["measure", "time", "budget", "decompose"]


def test_a_budget_out_of_reach_says_the_least_that_was_measured(monkeypatch, network):
    steps = []
    with counted_macs(monkeypatch, slower=lambda: 1.2), pytest.raises(RecipeError) as said:
        compress(*network, recipe(latency=0.001), on_step=steps.append)
    assert "budget.latency is 0.001, but the least that can be reached is " in str(said.value)
    assert "milliseconds" in str(said.value) and "decompose" not in steps
    least = float(str(said.value).split("reached is ")[1].split()[0])
    with counted_macs(monkeypatch, slower=lambda: 1.2):
        plan = compress(*network, recipe(latency=least)).report.budget
    assert plan.milliseconds.share <= least * 1.02


def test_where_no_size_saves_time_the_budget_is_out_of_reach(monkeypatch, network):
    """Each call takes a second whatever it computes."""
    with counted_macs(monkeypatch, overhead=1.0), pytest.raises(RecipeError) as said:
        compress(*network, recipe(latency=0.6))
    assert "budget.latency is 0.6, but the least that can be reached is " in str(said.value)


def test_layers_of_three_axes_are_timed_too(monkeypatch):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv3d(8, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(16, 16, 3)
    ).eval()
    with counted_macs(monkeypatch):
        found = compress(model, torch.randn(1, 8, 4, 6, 6), recipe(latency=0.5)).report
    assert abs(found.budget.milliseconds.share / 0.5 - 1) <= 0.02
    assert found.budget.latency == pytest.approx(found.budget.macs, rel=0.02)


def test_a_table_is_written_beside_the_artefact_and_given_again(monkeypatch, network, tmp_path):
    model, example = network
    with counted_macs(monkeypatch, slower=lambda: 1.3):
        first = compress(model, example, recipe(latency=0.6))
    first.save(tmp_path / "first")
    table = read_table(tmp_path / "first")
    assert table == first.latency == read_table(tmp_path / "first" / TABLE)
    with counted_macs(monkeypatch) as seen:
        again = compress(model, example, recipe(latency=0.6, table=str(tmp_path / "first")))
    assert seen == []
    plan = again.report.budget
    assert plan.layers == first.report.budget.layers
    assert plan.milliseconds.measured is None and plan.milliseconds.share == pytest.approx(0.6, rel=0.02)
    assert "by the table that was given" in budget_in_words(plan)
    with pytest.raises(RecipeError, match="lacks the layer 'conv .* on 4x3x"):
        compress(model, example[:1].repeat(4, 1, 1, 1), recipe(latency=0.6, table=str(tmp_path / "first")))
    compress(model, example, recipe(macs=0.5)).save(tmp_path / "first")
    assert not (tmp_path / "first" / TABLE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "forms"}, "is no table of milliseconds"),
        ({"milliseconds": 0}, "is damaged"),
        ({"memory_format": "sideways"}, "is damaged"),
        ({"layers": {"conv": {"dense": 1.0}}}, "is damaged"),
    ],
)
def test_a_damaged_table_is_refused_before_any_work(network, tmp_path, change, message):
    plain = {"format": "norton-plugin milliseconds", "version": 1, "milliseconds": 1.0, "correction": 1.0}
    plain |= {"memory_format": "contiguous", "layers": {}, "machine": {}}
    (tmp_path / TABLE).write_text(json.dumps({**plain, **change}))
    with pytest.raises(RecipeError, match=message):
        compress(*network, recipe(latency=0.6, table=str(tmp_path / TABLE)))
    with pytest.raises(RecipeError, match="cannot be read"):
        compress(*network, recipe(latency=0.6, table=str(tmp_path / "none.json")))


def test_time_and_parameters_hold_together(monkeypatch, network):
    pytest.importorskip("scipy")
    with counted_macs(monkeypatch):
        report = compress(*network, recipe(level="auto", latency=0.7, params=0.4)).report
    assert report.parameters_after / report.parameters_before <= 0.4
    assert report.budget.milliseconds.share <= 0.7 * 1.02
    with counted_macs(monkeypatch):
        free = compress(*network, recipe(level="auto", latency=0.7)).report
    assert free.parameters_after / free.parameters_before > 0.4


def test_pruning_within_time(monkeypatch):
    torch.manual_seed(3)
    model, example = settle(Residual(16)), images(2)[0]
    with counted_macs(monkeypatch):
        report = compress(model, example, hybrid(latency=0.3), calibration=images(64)).report
    plan = report.budget
    assert {"hybrid", "decomposition", "pruning", "even pruning"} >= set(plan.divergence)
    assert "even pruning" in plan.divergence and len(plan.divergence) >= 3
    assert abs(plan.milliseconds.share / 0.3 - 1) <= 0.03
    assert plan.milliseconds.share == pytest.approx(report.macs_after / report.macs_before, rel=1e-6)


@pytest.mark.parametrize("share", [0, 2, -1, float("nan"), "x"])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(RecipeError, match=r"budget.latency is .*; expected a number in \(0, 1\]"):
        Budget(latency=share)


def test_a_table_without_a_budget_of_time_is_refused():
    with pytest.raises(RecipeError, match="budget.latency is not set"):
        Budget(macs=0.5, table="latency.json")
