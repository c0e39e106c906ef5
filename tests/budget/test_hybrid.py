"""Budgets that also prune: what is foretold is what is built, and the best of three plans is kept."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from norton_plugin import Budget, Recipe, RecipeError, Scope, SurgeryError, compress
from norton_plugin.budget.fronts import either, front_of, together
from norton_plugin.budget.measured import MeasuredDivergence
from norton_plugin.calibration.divergence import divergence, outputs_of
from norton_plugin.calibration.input_moments import InputMoments
from norton_plugin.cost import count_cost
from norton_plugin.recipe import Calibration, Decomposition, Pruning
from norton_plugin.surgery import PruningReport
from tests.calibration.test_calibrate import images
from tests.networks import Residual, settle

FIT = Calibration(fit=True, positions=64)


def network() -> nn.Module:
    torch.manual_seed(3)
    return settle(Residual(16))


def recipe(*, level="layer", scope=None, round_to=1, keeps=None, min_keep=0.1, criterion="output", **budget) -> Recipe:
    return Recipe(
        budget=Budget(prune=True, **budget),
        decomposition=Decomposition(level=level, restarts=1, sweeps=5),
        pruning=Pruning(criterion=criterion, round_to=round_to, keeps=keeps or {}, min_keep=min_keep),
        calibration=FIT,
        scope=scope or Scope(),
    )


@pytest.mark.parametrize(("level", "share"), [("filter", 0.25), ("layer", 0.15), ("auto", 0.4)])
def test_what_is_foretold_is_what_is_built(level, share):
    model, example = network(), images(2)[0]
    result = compress(model, example, recipe(level=level, macs=share), calibration=images(96))
    plan, report = result.report.budget, result.report
    reached = report.macs_after / report.macs_before
    assert 0.94 * share <= reached <= share * 1.001
    assert plan.macs == pytest.approx(reached, rel=2e-3)
    assert plan.params == pytest.approx(report.parameters_after / report.parameters_before, rel=2e-2)
    assert plan.phases in plan.divergence and plan.divergence[plan.phases] == min(plan.divergence.values())
    assert report.calibration.divergence[report.calibration.chosen] == plan.divergence[plan.phases]
    assert {group.root for group in plan.groups} == {group.root for group in report.pruning.groups}
    assert result.recipe.budget == Budget()
    again = compress(model, example, result.recipe, calibration=images(96))
    with torch.no_grad():
        torch.testing.assert_close(again.model(example), result.model(example))


class Decoder(nn.Sequential):
    """A transposed convolution that widens, between convolutions."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 96, 4, stride=2, padding=1),
            nn.BatchNorm2d(96),
            nn.ReLU(),
            nn.Conv2d(96, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 2, 1),
        )


def test_a_transposed_convolution_costs_what_its_filters_and_channels_say():
    torch.manual_seed(0)
    model, example = settle(Decoder()), images(2)[0]
    report = compress(model, example, recipe(macs=0.3), calibration=images(96)).report
    reached = report.macs_after / report.macs_before
    assert report.pruning.groups and reached <= 0.3 * 1.001
    assert report.budget.macs == pytest.approx(reached, rel=2e-3)
    assert report.budget.params == pytest.approx(report.parameters_after / report.parameters_before, rel=2e-2)


def test_parameters_are_a_budget_too_and_pruning_alone_is_tried():
    report = compress(network(), images(2)[0], recipe(params=0.6), calibration=images(96)).report
    assert 0.9 * 0.6 <= report.parameters_after / report.parameters_before <= 0.6 * 1.001
    assert {"pruning", "decomposition"} <= report.budget.divergence.keys() | {report.budget.phases}


def test_few_samples_are_told_once_for_all_plans(caplog):
    report = compress(network(), images(2)[0], recipe(macs=0.5), calibration=images(16)).report
    assert len(report.budget.divergence) > 1
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage() == report.calibration.few_samples != ""


def test_below_what_decomposition_reaches_pruning_goes_on():
    model, example = network(), images(2)[0]
    single = Recipe(budget=Budget(macs=0.01), decomposition=Decomposition(level="filter", restarts=1, sweeps=5))
    with pytest.raises(RecipeError, match="the least that can be reached is 0.1") as said:
        compress(model, example, single)
    least = float(str(said.value).split("reached is ")[1].split()[0])
    result = compress(model, example, recipe(level="filter", macs=0.9 * least), calibration=images(96))
    assert result.report.budget.phases == "hybrid" and "decomposition" not in result.report.budget.divergence
    with pytest.raises(RecipeError, match="budget.macs is 0.001, but the least that can be reached is"):
        compress(model, example, recipe(level="filter", macs=0.001), calibration=images(96))


def test_rounding_shares_and_layers_that_are_kept_are_respected():
    model, example = network(), images(2)[0]
    asked = recipe(level="filter", macs=0.15, round_to=4, min_keep=0.5, keeps={"layers.0.conv1": 1.0})
    report = compress(model, example, asked, calibration=images(96)).report
    assert [group.root for group in report.budget.groups] == ["layers.1.conv1"]
    assert all(group.after % 4 == 0 and group.after >= 8 for group in report.budget.groups)
    scoped = recipe(level="filter", macs=0.4, scope=Scope(exclude=("layers.1.conv1",)))
    report = compress(model, example, scoped, calibration=images(96)).report
    assert "layers.1.conv1" not in {group.root for group in report.pruning.groups}
    ignored = compress(
        model, example, recipe(level="filter", macs=0.15), calibration=images(96), ignored=[model.layers[0].conv1]
    )
    assert ignored.model.layers[0].conv1.out_channels == 16


def test_a_cut_is_measured_as_it_would_be_built():
    """Weights of least squares in the dense model give the outputs of the pruned model with these weights."""
    model, batches = network(), images(64)
    settings = {"example_inputs": batches[0], "call": lambda net, x: net(x), "positions": 64}
    moments = InputMoments(model, batches, **settings)
    measured = MeasuredDivergence(model, moments, batches, call=settings["call"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = [0, 2, 3, 5, 8, 9, 11]
    weight, shift = moments.taken_over("layers.0.conv2", kept)
    found = measured.of({"layers.0.conv2": (weight, shift)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert measured.of({}) == 0.0

    block = model.layers[0]

    def cut(x: Tensor) -> Tensor:
        hidden = torch.relu(block.norm1(block.conv1(x)))[:, kept]
        y = nn.functional.conv2d(hidden, weight[:, kept].float(), padding=1) + shift.float().view(1, -1, 1, 1)
        return torch.relu(x + block.norm2(y))

    with torch.no_grad():
        outputs = [[model.head(model.layers[1](cut(model.stem(x))).mean((2, 3)))] for x in batches]
    expected = divergence(outputs_of(model, batches, settings["call"]), outputs)
    assert found == pytest.approx(expected, rel=1e-3) and found > 1e-6
    assert not bool(weight[:, [1, 4, 6]].any())
    # Without the take-over it costs more.
    plain = torch.zeros_like(weight)
    plain[:, kept] = block.conv2.weight.detach().double()[:, kept]
    assert measured.of({"layers.0.conv2": (plain, torch.zeros(16))}) > 1.5 * found


def test_fronts_hold_the_best_of_all_combinations():
    import numpy as np

    generator = np.random.default_rng(0)
    first, second = (
        front_of(generator.integers(1, 30, 9) * 1.0, generator.random(9), [((which, i),) for i in range(9)])
        for which in "ab"
    )
    found = together(first, second)
    pairs = [
        (c + d, e + f)
        for c, e in zip(first.costs, first.errors, strict=True)
        for d, f in zip(second.costs, second.errors, strict=True)
    ]
    for limit in range(2, 60):
        within = [error for cost, error in pairs if cost <= limit]
        if within:
            assert found.errors[found.costs <= limit].min() == pytest.approx(min(within))
    assert all(len(choice) == 2 for choice in found.choices)
    one = either([first, second])
    assert one.errors.min() == min(first.errors.min(), second.errors.min())
    assert list(one.costs) == sorted(one.costs) and list(one.errors) == sorted(one.errors, reverse=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": Budget(macs=0.5, prune=True)}, "set calibration.fit too"),
        ({"budget": Budget(prune=True), "calibration": FIT}, "there is no budget"),
        (
            {"budget": Budget(macs=0.5, prune=True), "calibration": FIT, "pruning": Pruning(keep=0.5)},
            "which finds the shares itself",
        ),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**{"decomposition": Decomposition(level="layer"), **settings})


def test_it_needs_images_before_any_work():
    with pytest.raises(RecipeError, match="needs unlabelled images"):
        compress(network(), images(2)[0], recipe(macs=0.5), on_step=lambda step: pytest.fail(step))


def test_any_criterion_may_rank():
    for criterion in ("pabs", "l2"):
        result = compress(
            network(), images(2)[0], recipe(level="filter", macs=0.12, criterion=criterion), calibration=images(96)
        )
        assert result.report.budget.groups
        assert count_cost(result.model, lambda model=result.model: model(images(2)[0])).macs == result.report.macs_after


def test_plans_whose_groups_could_not_be_pruned_do_not_count(monkeypatch):
    """Where the proof of a group fails the model is larger than planned."""
    monkeypatch.setattr("norton_plugin.pipeline.phases.prune_", lambda *_, **__: PruningReport((), ()))
    model, example = network(), images(2)[0]
    report = compress(model, example, recipe(level="filter", macs=0.2), calibration=images(96)).report
    assert report.budget.phases == "decomposition" and set(report.budget.divergence) == {"decomposition"}
    with pytest.raises(SurgeryError, match="no plan stays within the budget"):
        compress(model, example, recipe(level="filter", macs=0.1), calibration=images(96))


def test_several_budgets_hold_together_when_pruning_too():
    pytest.importorskip("scipy")
    model, example = network(), images(2)[0]
    one = compress(model, example, recipe(level="filter", macs=0.3), calibration=images(96)).report
    limit = 0.6 * one.parameters_after / one.parameters_before
    both = compress(model, example, recipe(level="filter", macs=0.3, params=limit), calibration=images(96)).report
    assert both.macs_after / both.macs_before <= 0.3 * 1.001
    assert both.parameters_after / both.parameters_before <= limit * 1.001
    with pytest.raises(RecipeError, match="budget.params is 0.0001, but the least"):
        compress(model, example, recipe(level="filter", macs=0.3, params=1e-4), calibration=images(96))


class Tied(nn.Module):
    """Convolutions of which two hold one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3 if i == 0 else 16, 16, 3, padding=1) for i in range(3))
        self.d = nn.Conv2d(16, 16, 3, padding=1)
        self.d.weight = self.c.weight
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c, self.d):
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.75}])
def test_a_weight_that_two_layers_hold_is_counted_once_when_pruning_too(budget):
    torch.manual_seed(0)
    report = compress(Tied().eval(), images(2)[0], recipe(**budget), calibration=images(96)).report
    reached = report.parameters_after / report.parameters_before
    assert reached <= budget.get("params", 1) * 1.001
    assert "hybrid" in report.budget.divergence  # it was carried out, and was within the budget
    assert report.budget.params == pytest.approx(reached, rel=2e-2)


def test_what_two_layers_free_together_can_be_asked_for():
    torch.manual_seed(0)
    model = Tied().eval()
    model.b.weight = model.c.weight  # three layers now
    scope = Scope(include=("b", "c", "d"))
    asked = replace(recipe(params=0.4, scope=scope), pruning=Pruning(criterion="output", min_keep=1.0))
    report = compress(model, images(2)[0], asked, calibration=images(96)).report
    assert report.parameters_after / report.parameters_before <= 0.4
