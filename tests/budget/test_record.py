"""What was measured once is not measured again: another budget of the same model and images, and why not otherwise."""

import json

import pytest
import torch

from norton_plugin import Budget, Recipe, RecipeError, compress
from norton_plugin.budget import SENSITIVITIES, SensitivityRecord, read_record
from norton_plugin.recipe import Calibration, Decomposition, Pruning
from tests.calibration.test_calibrate import images
from tests.networks import Residual, settle

MEASURING = (
    "norton_plugin.budget.evidence.layer_sensitivities",
    "norton_plugin.pipeline.hybrid.ranked_by_outputs",
    "norton_plugin.budget.hybrid.MeasuredDivergence",
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    return settle(Residual(16)), images(2)[0]


def recipe(*, level="layer", positions=32, **budget) -> Recipe:
    return Recipe(
        budget=Budget(**budget),
        decomposition=Decomposition(level=level, restarts=1, sweeps=5),
        pruning=Pruning(criterion="output", round_to=1),
        calibration=Calibration(fit=True, positions=positions),
    )


def measured(monkeypatch) -> list[str]:
    """Return a list that is told what is measured from now on."""
    seen: list[str] = []
    for name in MEASURING:
        module, attribute = name.rsplit(".", 1)
        own = getattr(__import__(module, fromlist=[attribute]), attribute)

        def told(*args, own=own, attribute=attribute, **kwargs):
            seen.append(attribute)
            return own(*args, **kwargs)

        monkeypatch.setattr(name, told)
    return seen


@pytest.mark.parametrize("prune", [False, True])
def test_another_budget_of_the_same_model_measures_nothing(monkeypatch, network, tmp_path, prune):
    model, example = network
    first = compress(model, example, recipe(macs=0.5, prune=prune), calibration=images(64))
    first.save(tmp_path / "first")
    assert first.report.budget.sensitivities == ""
    expected = compress(model, example, recipe(macs=0.3, prune=prune), calibration=images(64))
    seen = measured(monkeypatch)
    asked = recipe(macs=0.3, prune=prune, reuse=str(tmp_path / "first"))
    found = compress(model, example, asked, calibration=images(64))
    assert seen == []
    assert found.report.budget.sensitivities == f"sensitivities taken from {tmp_path / 'first'}"
    assert found.report.budget.layers == expected.report.budget.layers
    assert found.report.budget.groups == expected.report.budget.groups
    with torch.no_grad():
        torch.testing.assert_close(found.model(example), expected.model(example))
    found.save(tmp_path / "second")
    assert read_record(tmp_path / "second").lost.keys() == read_record(tmp_path / "first").lost.keys()


def test_another_level_is_measured_beside_what_is_known(monkeypatch, network, tmp_path):
    model, example = network
    compress(model, example, recipe(macs=0.5), calibration=images(64)).save(tmp_path / "first")
    seen = measured(monkeypatch)
    asked = recipe(level="auto", macs=0.5, reuse=str(tmp_path / "first" / SENSITIVITIES))
    told = compress(model, example, asked, calibration=images(64)).report.budget.sensitivities
    assert "not used, since decomposition.level differs" in told and seen == ["layer_sensitivities"]


def test_other_weights_images_or_options_are_named(network, tmp_path):
    model, example = network
    asked = recipe(macs=0.5, prune=True, reuse=str(tmp_path / "first"))
    compress(model, example, recipe(macs=0.5, prune=True), calibration=images(64)).save(tmp_path / "first")
    torch.manual_seed(4)
    changed = [
        (settle(Residual(16)), asked, images(64), None, "the model or its weights differ"),
        (model, asked, images(48), None, "the images differ"),
        (model, recipe(positions=16, **vars(asked.budget)), images(64), None, "calibration.positions differs"),
        (model, asked, images(64), lambda group: torch.arange(group.size), "a criterion of your own"),
    ]
    for net, own, batches, criterion, words in changed:
        report = compress(net, example, own, calibration=batches, criterion=criterion).report
        assert f"{words}" in report.budget.sensitivities and "measured" in report.budget.sensitivities


def test_without_images_nothing_is_taken_and_it_is_said(network, tmp_path):
    model, example = network
    compress(model, example, recipe(macs=0.5), calibration=images(64)).save(tmp_path / "first")
    plain = Recipe(
        budget=Budget(macs=0.5, reuse=str(tmp_path / "first")),
        decomposition=Decomposition(level="layer", restarts=1, sweeps=5),
    )
    result = compress(model, example, plain)
    assert "there are no images" in result.report.budget.sensitivities
    result.save(tmp_path / "first")
    assert not (tmp_path / "first" / SENSITIVITIES).exists()


@pytest.mark.parametrize(
    "change", [{"format": "x"}, {"lost": {"stem": {"layer 1": {"1": "much"}}}}, {"cuts": 3}, {"more": 1}]
)
def test_a_damaged_record_is_refused_before_any_work(network, tmp_path, change):
    plain = {"format": "norton-plugin sensitivities", "version": 1, "weights": "", "images": "", "options": {}}
    (tmp_path / SENSITIVITIES).write_text(json.dumps({**plain, **change}))
    steps = []
    with pytest.raises(RecipeError, match="sensitivities"):
        compress(*network, recipe(macs=0.5, reuse=str(tmp_path)), calibration=images(64), on_step=steps.append)
    assert steps == ["measure"]


def test_an_option_that_only_one_record_has_is_named():
    one, other = (SensitivityRecord("w", "i", options) for options in ({"seed": 0}, {"seed": 0, "masks": True}))
    assert one.difference(other) == other.difference(one) == "masks differs"
    assert one.difference(one) is None
