"""One share for the channels of all groups: the largest that meets the budget, and what comes of it."""

import math

import pytest
import torch

from norton_plugin import Budget, Recipe, RecipeError, compress
from norton_plugin.budget import Milliseconds
from norton_plugin.budget.even import NarrowModel, even_plan
from norton_plugin.cost import ModelCost, count_cost
from norton_plugin.recipe import Decomposition, Pruning
from tests.budget.test_hybrid import FIT, images, network, recipe
from tests.stopwatch import counted_macs


def model_cost(macs, parameters, layer):
    return ModelCost(macs=macs, parameters=parameters, layer_macs={"conv": layer}, map_sizes={})


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


def test_none_below_the_least_share():
    assert found(min_keep=0.8, macs=0.5) is None
    assert found(min_keep=0.7, macs=0.5).keep == 45 / 64


def test_it_is_taken_where_nothing_else_meets_the_budget():
    model, example = network(), images(2)[0]
    asked = recipe(level="filter", macs=0.03)
    result = compress(model, example, asked, calibration=images(96))
    plan, report = result.report.budget, result.report
    assert plan.phases == "pruning, one share" and plan.missed == ("hybrid", "pruning", "decomposition")
    assert report.macs_after <= 0.03 * report.macs_before
    assert plan.macs == pytest.approx(report.macs_after / report.macs_before)
    assert report.decomposition.layers == ()
    cut = {name for group in report.pruning.groups for name in group.members}
    assert "stem" in cut, "the stream is narrower too"
    again = compress(model, example, result.recipe, calibration=images(96)).model
    with torch.no_grad():
        torch.testing.assert_close(again(example), result.model(example), rtol=0, atol=0)
    assert count_cost(again, lambda: again(example)).macs == report.macs_after


def test_a_budget_below_all_plans_says_the_least():
    with pytest.raises(RecipeError, match="the least that can be reached is"):
        compress(network(), images(2)[0], recipe(level="filter", min_keep=0.9, macs=0.03), calibration=images(96))


def test_it_is_tried_under_a_budget_of_milliseconds(monkeypatch):
    asked = Recipe(
        budget=Budget(prune=True, latency=0.4),
        decomposition=Decomposition(level="layer", restarts=1, sweeps=5),
        pruning=Pruning(round_to=1, criterion="output"),
        calibration=FIT,
    )
    told = []
    with counted_macs(monkeypatch):  # a MAC for a nanosecond
        report = compress(network(), images(2)[0], asked, calibration=images(96), on_detail=told.append).report
    assert any(words.startswith("timing a narrower model") for words in told)
    plan = report.budget
    assert "pruning, one share" in plan.divergence
    assert plan.divergence[plan.phases] == min(plan.divergence.values())
