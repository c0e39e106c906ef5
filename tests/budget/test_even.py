"""One share for the channels of all groups: the largest that meets the budget, and what comes of it."""

import math
import re
from dataclasses import replace

import pytest
import torch

from norton_plugin import Budget, Recipe, RecipeError, compress
from norton_plugin.budget import Milliseconds, joint
from norton_plugin.budget.even import EVEN, NarrowModel, even_plan, within
from norton_plugin.cost import ModelCost, count_cost
from norton_plugin.recipe import Decomposition, Pruning
from tests.budget.test_hybrid import FIT, images, network, recipe
from tests.stopwatch import counted_macs
from tests.surgery.test_unruly import Net, of_fixed_width


def model_cost(macs, parameters, layer):
    return ModelCost(macs=macs, parameters=parameters, layer_macs={"conv": layer}, map_sizes={})


def timed(share):
    return Recipe(
        budget=Budget(prune=True, latency=share),
        decomposition=Decomposition(level="layer", restarts=1, sweeps=5),
        pruning=Pruning(round_to=1, criterion="output"),
        calibration=FIT,
    )


DENSE = model_cost(10_000_000, 1_000_000, 6_000_000)


def narrowed(sized):
    """MACs fall with the square of the share, parameters with its third power, milliseconds with the share itself."""
    keep = sized.pruning.keep
    cost = model_cost(round(keep**2 * 1e7), round(keep**3 * 1e6), round(keep**2 * 6e6))
    return NarrowModel(cost, Milliseconds(8.0, 8 * keep, 8 * keep, plans=1))


def found(*, min_keep=0.1, **limits):
    asked = Recipe(budget=Budget(**limits), pruning=Pruning(min_keep=min_keep, global_ranking=True))
    return even_plan(asked, DENSE, ["conv"], narrowed=narrowed)


@pytest.mark.parametrize(
    ("limits", "share"),
    [
        ({"macs": 0.5}, math.floor(64 * 0.5**0.5)),
        ({"params": 0.5}, math.floor(64 * 0.5 ** (1 / 3))),
        ({"latency": 0.5}, 32),
        ({"latency": 0.495}, 32),  # within the tolerance of what is measured
        ({"macs": 0.5, "params": 0.1}, math.floor(64 * 0.1 ** (1 / 3))),
        ({"macs": 0.999}, 63),
    ],
)
def test_the_largest_share_within_the_budget(limits, share):
    plan = found(**limits)
    assert plan.keep == share / 64
    assert plan.macs == pytest.approx(plan.keep**2, abs=1e-6) and plan.params == pytest.approx(plan.keep**3, abs=1e-5)
    assert plan.latency == pytest.approx(plan.keep) and plan.milliseconds.share == pytest.approx(plan.keep)
    assert [(layer.name, layer.level) for layer in plan.layers] == [("conv", None)]
    assert plan.layers[0].macs == pytest.approx(plan.keep**2, abs=1e-6)
    sized = plan.recipe(Recipe(budget=Budget(**limits), pruning=Pruning(global_ranking=True)))
    assert sized.pruning.keep == plan.keep and not sized.pruning.global_ranking and sized.budget == Budget()


def test_the_smallest_share_where_none_is_within_the_budget():
    plan = found(min_keep=0.8, macs=0.5)
    assert plan.keep == 52 / 64 and not within(plan)
    plan = found(min_keep=0.7, macs=0.5)
    assert plan.keep == 45 / 64 and within(plan)


def test_each_share_that_was_timed_counts():
    assert found(latency=0.5).milliseconds.plans == 6


def test_it_is_taken_where_nothing_else_meets_the_budget():
    model, example = network(), images(2)[0]
    asked = recipe(level="filter", macs=0.03)
    result = compress(model, example, asked, calibration=images(96))
    plan, report = result.report.budget, result.report
    assert plan.phases == EVEN and plan.missed == ("hybrid", "pruning", "decomposition")
    assert report.macs_after <= 0.03 * report.macs_before
    assert plan.macs == pytest.approx(report.macs_after / report.macs_before)
    assert report.decomposition.layers == ()
    cut = {name for group in report.pruning.groups for name in group.members}
    assert "stem" in cut, "the stream is narrower too"
    again = compress(model, example, result.recipe, calibration=images(96)).model
    with torch.no_grad():
        torch.testing.assert_close(again(example), result.model(example), rtol=0, atol=0)
    assert count_cost(again, lambda: again(example)).macs == report.macs_after


def test_a_budget_below_all_plans_says_the_least_which_then_is_met():
    model, example = network(), images(2)[0]
    with pytest.raises(RecipeError, match=r"the least that can be reached is 0\.\d+") as error:
        compress(model, example, recipe(level="filter", macs=0.0005), calibration=images(96))
    least = float(re.search(r"reached is (0\.\d+)", str(error.value)).group(1))
    report = compress(model, example, recipe(level="filter", macs=least), calibration=images(96)).report
    assert report.macs_after <= least * report.macs_before
    assert report.budget.phases == EVEN


def test_groups_that_cannot_be_proved_stay_whole_in_the_search_too(monkeypatch):
    asked, example = timed(0.5), torch.randn(2, 3, 8, 8)
    model = Net(of_fixed_width).eval()
    data = [torch.randn(16, 3, 8, 8) for _ in range(6)]
    with counted_macs(monkeypatch):
        result = compress(model, example, asked, calibration=data)
    assert result.report.budget.divergence, "plans were carried out"
    result.model(example)


def test_modules_that_must_keep_their_width_do():
    model, example = network(), images(2)[0]
    asked = recipe(level="filter", macs=0.06)
    found = compress(model, example, asked, calibration=images(96), ignored=[model.layers[0].conv1])
    assert found.report.budget.phases == EVEN
    kept = {name for group in found.report.pruning.groups for name in group.members}
    assert kept and "layers.0.conv1" not in kept


def test_with_a_table_whole_models_are_not_timed(monkeypatch, tmp_path):
    model, example = network(), images(2)[0]
    with counted_macs(monkeypatch):
        first = compress(model, example, timed(0.4), calibration=images(96))
        first.save_measured(tmp_path)
        asked = replace(timed(0.4), budget=Budget(prune=True, latency=0.4, table=str(tmp_path / "latency.json")))
        plan = compress(model, example, asked, calibration=images(96)).report.budget
    assert EVEN in first.report.budget.divergence
    assert EVEN not in plan.divergence and EVEN not in plan.missed


def test_it_is_tried_under_a_budget_of_milliseconds(monkeypatch):
    told = []
    with counted_macs(monkeypatch):  # a MAC for a nanosecond
        report = compress(network(), images(2)[0], timed(0.4), calibration=images(96), on_detail=told.append).report
    assert any(words.startswith("timing a narrower model") for words in told)
    plan = report.budget
    assert EVEN in plan.divergence
    assert plan.divergence[plan.phases] == min(plan.divergence.values())


def test_budgets_that_only_even_pruning_meets_together(monkeypatch):
    monkeypatch.setattr(joint, "choose_nested", lambda *_, **__: None)
    asked = replace(timed(0.6), budget=Budget(prune=True, latency=0.6, macs=0.6))
    with counted_macs(monkeypatch):
        plan = compress(network(), images(2)[0], asked, calibration=images(96)).report.budget
    assert "hybrid" in plan.missed and EVEN in plan.divergence
