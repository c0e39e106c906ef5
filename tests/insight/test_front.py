"""The predicted front of a whole model: what a budget would choose, at every cost."""

import pytest
import torch

from norton_plugin import Budget, Recipe, RecipeError, compress
from norton_plugin.insight import front_table, model_front
from norton_plugin.recipe import Decomposition, Scope
from tests.calibration.test_calibrate import images
from tests.networks import Residual, settle
from tests.stopwatch import counted_macs


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return settle(Residual(32)), images(2)[0]


def auto(**budget) -> Recipe:
    decomposition = Decomposition(level="auto", linear=True, restarts=1, sweeps=5)
    return Recipe(budget=Budget(**budget), decomposition=decomposition)


def test_a_larger_model_loses_less_and_each_point_is_that_of_its_budget(network):
    front = model_front(*network)
    assert [p.macs for p in front] == sorted(p.macs for p in front) and len(front) >= 8
    assert [p.error for p in front] == sorted((p.error for p in front), reverse=True)
    assert all(point.latency is None and 0 < point.kept < 1 for point in front)
    for share in (0.3, 0.7):
        plan = compress(*network, auto(macs=share)).report.budget
        [point] = [point for point in front if abs(point.macs / share - 1) < 0.02]
        assert (point.macs, point.params, point.error) == (plan.macs, plan.params, pytest.approx(plan.error))


def test_with_a_table_it_tells_time(monkeypatch, network, tmp_path):
    with counted_macs(monkeypatch):
        result = compress(*network, auto(latency=0.5))
        result.save(tmp_path)
    with counted_macs(monkeypatch) as seen:
        front = model_front(*network, table=tmp_path)
    assert seen == []
    for point in front:
        assert point.latency == pytest.approx(point.macs, rel=0.03)  # the stopwatch counts MACs
        assert point.milliseconds == pytest.approx(point.latency * result.latency.milliseconds)
    texts = [column.heading for column in front_table(front).columns]
    assert "ms" in texts and "ms" not in [column.heading for column in front_table(model_front(*network)).columns]
    with pytest.raises(RecipeError, match="cannot be read"):
        model_front(*network, table=tmp_path / "none.json")


def test_layers_outside_the_scope_stay_dense(network):
    whole, part = model_front(*network), model_front(*network, scope=Scope(include=("layers.1",)))
    assert part[0].macs > whole[0].macs
