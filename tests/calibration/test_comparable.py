"""What two versions of a model are compared by where values choose its outputs."""

import logging

import pytest
import torch
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.budget.sensitivity import layer_sensitivities
from norton_plugin.calibration import Comparison, fisher_weights
from norton_plugin.calibration.comparable import ComparableOutputs
from norton_plugin.recipe import Budget, Calibration, Decomposition, Scope
from norton_plugin.surgery.targets import plan_decomposition

BATCHES = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]


def _call(model, batch):
    return model(batch)


class _Detector(nn.Module):
    """Boxes of the highest scores, of each image those above a threshold; a second stage looks at them again."""

    def __init__(self, threshold=0.0, *, maps=False):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.scores, self.boxes, self.second = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1), nn.Linear(4, 4)
        self.threshold, self.maps = threshold, maps

    def forward(self, x):
        x = self.body(self.stem(x).relu()).relu()
        scores, boxes = self.scores(x), self.boxes(x)
        found = []
        for score, box in zip(scores.flatten(1), boxes.flatten(2).mT, strict=True):
            best = score.topk(5)
            kept = best.indices[best.values > self.threshold]
            found.append({"boxes": self.second(box[kept]), "labels": torch.ones_like(kept)})
        return (scores, found) if self.maps else found


@pytest.fixture
def detector():
    def build(*args, **settings):
        torch.manual_seed(0)
        return _Detector(*args, **settings).eval()

    return build


@pytest.mark.parametrize("threshold", [-1e9, 1e9], ids=["boxes", "no box at all"])
def test_layers_before_a_choice_stand_for_chosen_outputs(detector, threshold):
    model = detector(threshold)
    found = ComparableOutputs.of(model, BATCHES[0], _call)
    assert found == ComparableOutputs((), ("scores", "boxes"))
    maps = found.read(model, BATCHES[0], _call)
    assert [tuple(tensor.shape) for tensor in maps] == [(4, 1, 12, 12), (4, 4, 12, 12)]


def test_outputs_that_no_value_chooses_are_compared_and_the_others_left_out(detector):
    assert ComparableOutputs.of(detector(-1e9, maps=True), BATCHES[0], _call) == ComparableOutputs((0,))


def test_logits_are_compared_even_behind_a_choice():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.score, self.head = nn.Linear(3, 1), nn.Linear(3, 7)

        def forward(self, x):
            tokens = x.flatten(2).mT
            kept = self.score(tokens).squeeze(2).topk(9).indices
            return self.head(tokens.gather(1, kept[..., None].expand(-1, -1, 3))).mean(1)

    assert ComparableOutputs.of(Tokens().eval(), BATCHES[0], _call) == ComparableOutputs((0,))


def test_a_detector_that_finds_nothing_still_tells_a_worse_model(detector):
    model, worse = detector(1e9), detector(1e9)
    comparison = Comparison(model, BATCHES[:2], _call)
    assert comparison.of(worse) == 0
    worse.body.weight.data *= 0.5
    assert comparison.of(worse) > 0.01


def test_fit_of_a_detector_that_finds_nothing_is_kept(detector):
    recipe = Recipe(
        decomposition=Decomposition(level="layer", restarts=1, sweeps=20),
        budget=Budget(macs=0.5),
        calibration=Calibration(fit=True),
    )
    _, report = compress(detector(1e9), BATCHES[0][:1], recipe, calibration=BATCHES)
    fitted = report.calibration
    assert fitted.chosen == "fitted" and 0 < fitted.divergence["fitted"] < fitted.divergence["plain"]
    assert report.budget.measure == "outputs"


def test_gradients_come_from_what_is_compared(detector):
    model = detector(1e9)
    layers = {name: model.get_submodule(name) for name in ("stem", "body", "scores", "second")}
    assert sorted(fisher_weights(model, layers, BATCHES[:2], call=_call)) == ["body", "scores", "stem"]


def test_a_layer_without_gradients_counts_by_its_weight_and_is_named(detector, caplog):
    model = detector(1e9)
    wanted = Decomposition(level="layer", share=1.0, linear=True, allow_more_macs=True)
    targets, _ = plan_decomposition(model, wanted, scope=Scope(), map_sizes={})
    places = {target.names[0]: i for i, target in enumerate(targets)}
    with caplog.at_level(logging.WARNING):
        found = layer_sensitivities(model, targets, BATCHES[:2], call=_call, seed=0)
    assert torch.equal(found[places["second"]].seen().flatten(1), model.second.weight.detach().double())
    assert not torch.allclose(found[places["body"]].seen(), model.body.weight.detach().double())
    assert "weights of 1 layers" in caplog.text and "second" in caplog.text
