"""A budget for a whole model: met, the best there is, the same each time, or refused with the reason."""

import json

import numpy as np
import pytest
import timm
import torch

from norton_plugin import Budget, Recipe, RecipeError, Scope, SurgeryError, compress
from norton_plugin.budget import plan_budget
from norton_plugin.budget.distortion import weight_errors
from norton_plugin.budget.menu import layer_menus
from norton_plugin.cost import count_cost
from norton_plugin.recipe import Calibration, Decomposition, Pruning

QUICK = {"restarts": 1, "sweeps": 5}


def _recipe(level="layer", scope=None, linear=False, layers=None, **budget):
    decomposition = Decomposition(level=level, linear=linear, layers=layers or {}, **QUICK)
    return Recipe(budget=Budget(**budget), decomposition=decomposition, scope=scope or Scope())


@pytest.fixture(scope="module")
def resnet18():
    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    x = torch.randn(1, 3, 64, 64)
    return model, count_cost(model, lambda: model(x))


# One component of a spatial SVD is 2 % of such a network: 0.3 is beyond its steps.
@pytest.mark.parametrize(
    ("level", "share"),
    [("layer", 0.7), ("layer", 0.3), ("auto", 0.5), ("auto", 0.3), ("spatial", 0.7), ("spatial", 0.5)],
)
def test_a_tiny_network_meets_its_budget_within_two_percent(residual, image, level, share):
    model, report = compress(residual, image, _recipe(level, macs=share))
    reached = report.macs_after / report.macs_before
    assert 0.98 * share <= reached <= share
    assert report.budget.macs == reached == count_cost(model, lambda: model(image)).macs / report.macs_before
    assert model(image).isfinite().all()


def test_parameters_are_a_budget_too(residual, image):
    _, report = compress(residual, image, _recipe(params=0.5))
    assert 0.98 * 0.5 <= report.parameters_after / report.parameters_before <= 0.5
    assert report.budget.params == report.parameters_after / report.parameters_before


def test_two_budgets_hold_together(residual, image):
    pytest.importorskip("scipy")
    one = compress(residual, image, _recipe("auto", macs=0.5)).report
    both = compress(residual, image, _recipe("auto", macs=0.5, params=0.45)).report
    assert one.parameters_after / one.parameters_before > 0.45
    assert both.parameters_after / both.parameters_before <= 0.45
    assert both.macs_after / both.macs_before <= 0.5


@pytest.mark.parametrize("level", ["filter", "layer", "auto"])
def test_resnet18_meets_its_budget_within_two_percent(resnet18, level):
    for share in (0.5, 0.3):
        plan = plan_budget(resnet18[0], _recipe(level, macs=share), resnet18[1])
        assert 0.98 * share <= plan.macs <= share


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_no_single_share_for_all_layers_is_foretold_a_lower_error(resnet18, share):
    model, cost = resnet18
    recipe = _recipe(macs=0.5)
    macs = error = dense = 0.0
    for menu in layer_menus(model, recipe, cost):
        lost = weight_errors(menu.target, [option.layout for option in menu.options[1:]])
        errors = [0.0, *-np.log1p(-lost)]
        fits = [i for i, option in enumerate(menu.options) if option.macs <= share * menu.options[0].macs]
        largest = max(fits, key=lambda i: menu.options[i].macs)
        macs, dense = macs + menu.options[largest].macs, dense + menu.options[0].macs
        error += errors[largest]
    plan = plan_budget(model, _recipe(macs=(cost.macs - dense + macs) / cost.macs), cost)
    assert plan.error < error


def test_costs_grow_with_the_size(resnet18):
    for menu in layer_menus(resnet18[0], _recipe("auto", macs=0.5), resnet18[1]):
        for level in ("filter", "layer", "spatial"):
            options = [option for option in menu.options[1:] if option.layout.level == level]
            assert (np.diff([option.macs for option in options]) > 0).all()
            assert (np.diff([option.parameters for option in options]) > 0).all()
        assert all(option.macs < menu.options[0].macs for option in menu.options[1:])


def test_the_recipe_of_the_result_gives_the_same_model_again(residual, image):
    first = compress(residual, image, _recipe("auto", linear=True, macs=0.5))
    assert not first.recipe.budget.given
    again = compress(residual, image, Recipe.from_dict(json.loads(json.dumps(first.recipe.to_dict()))))
    assert again.report.structure == first.report.structure
    assert torch.equal(again.model(image), first.model(image))
    found = first.report.to_dict()["budget"]["budget"]
    assert {name: value for name, value in found.items() if value} == {"macs": 0.5}


def test_the_same_budget_gives_the_same_plan(resnet18):
    plans = [plan_budget(resnet18[0], _recipe("filter", macs=0.4), resnet18[1]) for _ in range(2)]
    assert plans[0] == plans[1]


def test_layers_that_are_excluded_or_given_none_stay_dense(residual, image):
    recipe = _recipe(scope=Scope(exclude=("stem",)), layers={"layers.0.conv1": {"rank": None}}, macs=0.7)
    model, report = compress(residual, image, recipe)
    assert isinstance(model.stem, torch.nn.Conv2d)
    assert isinstance(model.layers[0].conv1, torch.nn.Conv2d)
    assert {layer.name for layer in report.budget.layers} == {"layers.0.conv2", "layers.1.conv1", "layers.1.conv2"}
    assert 0.98 * 0.7 <= report.macs_after / report.macs_before <= 0.7


def test_a_level_of_a_pattern_holds(residual, image):
    recipe = _recipe("layer", layers={"layers.1": {"level": "spatial"}}, macs=0.4)
    levels = {layer.name: layer.level for layer in compress(residual, image, recipe).report.budget.layers}
    assert (levels["layers.0.conv1"], levels["layers.1.conv1"]) == ("layer", "spatial")


def test_pruning_goes_on_from_the_decomposed_model(residual, image):
    recipe = _recipe(macs=0.5)
    pruned = Recipe(budget=recipe.budget, decomposition=recipe.decomposition, pruning=Pruning(keep=0.5))
    report = compress(residual, image, pruned).report
    assert 0.98 * 0.5 <= report.budget.macs <= 0.5
    assert report.macs_after / report.macs_before < 0.4


def test_a_budget_out_of_reach_says_what_can_be_reached(residual, image):
    with pytest.raises(RecipeError, match=r"budget.macs is 0.01, but the least that can be reached is 0\.\d+") as error:
        compress(residual, image, _recipe("filter", macs=0.01))
    least = float(str(error.value).split("reached is ")[1].split(" ")[0])
    assert compress(residual, image, _recipe("filter", macs=least)).report.budget.macs <= least
    with pytest.raises(RecipeError, match="least that can be reached"):
        compress(residual, image, _recipe("filter", macs=round(least - 2e-4, 4)))


def test_a_model_without_a_layer_to_decompose_says_why():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    with pytest.raises(SurgeryError, match="no layer can become smaller at level 'filter': .*1x1"):
        compress(model, torch.randn(1, 3, 8, 8), _recipe("filter", macs=0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": {"macs": 0}}, r"budget.macs is 0; expected a number in \(0, 1\]"),
        ({"budget": {"macs": 1.2}}, "budget.macs is 1.2"),
        ({"budget": {"params": "half"}}, "budget.params is 'half'"),
        ({"budget": {"mac": 0.5}}, "unknown setting budget.'mac'; did you mean 'macs'"),
        ({"budget": {"macs": 1.0}}, "all of the dense model, which changes nothing"),
        ({"budget": {"macs": 1.0, "params": 1}}, "all of the dense model, which changes nothing"),
        ({"budget": {"macs": 0.5}, "decomposition": {"rank": 2}}, "decomposition.rank is 2, but a budget is given"),
        (
            {"budget": {"macs": 0.5}, "decomposition": {"ranks": {"stem": 2}}},
            r"decomposition.ranks\['stem'\] is 2, but a budget is given",
        ),
        (
            {"budget": {"macs": 0.5}, "decomposition": {"layers": {"stem": {"share": 0.5}}}},
            r"decomposition.layers\['stem'\].share is 0.5, but a budget is given",
        ),
        (
            {"budget": {"macs": 0.5}, "decomposition": {"level": "cluster", "clusters": 4}},
            "decomposition.level is 'cluster', but a budget is given",
        ),
        (
            {"budget": {"macs": 0.5}, "decomposition": {"level": "auto", "clusters": 4}},
            "decomposition.clusters is 4, but a budget is given",
        ),
        (
            {"budget": {"macs": 0.5}, "decomposition": {"level": "auto", "layers": {"stem": {"clusters": 2}}}},
            r"decomposition.layers\['stem'\].clusters is 2, but a budget is given",
        ),
    ],
)
def test_budgets_that_make_no_sense_are_refused_before_any_work(settings, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(settings)


def test_a_pattern_that_matches_nothing_is_refused_before_any_work(residual, image):
    steps = []
    recipe = _recipe(layers={"nowhere": {"level": "spatial"}}, macs=0.5)
    with pytest.raises(RecipeError, match="'nowhere' matches none"):
        compress(residual, image, recipe, on_step=steps.append)
    assert steps == []


def test_images_are_fitted_to_under_a_budget(residual, image):
    recipe = Recipe(
        budget=Budget(macs=0.5),
        decomposition=Decomposition(level="layer", **QUICK),
        calibration=Calibration(fit=True),
    )
    images = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    report = compress(residual, image, recipe, calibration=images).report
    assert report.calibration.layers
    assert 0.98 * 0.5 <= report.macs_after / report.macs_before <= 0.5


class _Tied(torch.nn.Module):
    """Two convolutions that hold one weight, and one whose weight a function reads as well."""

    def __init__(self, read=False):
        super().__init__()
        self.a = torch.nn.Conv2d(32, 32, 3, padding=1)
        self.b = torch.nn.Conv2d(32, 32, 3, padding=1)
        self.c = torch.nn.Conv2d(32, 32, 3, padding=1)
        self.b.weight = self.a.weight
        self.read = torch.nn.ParameterList([self.c.weight] if read else [])

    def forward(self, x):
        x = self.c(self.b(self.a(x)))
        for weight in self.read:
            x = torch.nn.functional.conv2d(x, weight, padding=1)
        return x


@pytest.mark.parametrize(("read", "share"), [(False, 0.6), (True, 0.8)])
def test_a_weight_of_several_layers_is_counted_once(read, share):
    torch.manual_seed(0)
    model, image = _Tied(read).eval(), torch.randn(1, 32, 16, 16)
    compressed, report = compress(model, image, _recipe("auto", params=share))
    reached = sum(p.numel() for p in compressed.parameters()) / sum(p.numel() for p in model.parameters())
    assert 0.96 * share <= reached <= share
    assert report.budget.params == reached
    one, other = [layer for layer in report.budget.layers if layer.name in "ab"]
    assert (one.level, one.rank, one.components) == (other.level, other.rank, other.components)


@pytest.mark.parametrize(
    ("recipe", "offered", "not_offered"),
    [
        (_recipe("filter", macs=0.01), ["level 'auto'", "decomposition.linear"], ["scope"]),
        (_recipe("auto", linear=True, macs=0.01), ["at least that", "keep"], ["level", "linear", "scope"]),
        (_recipe("auto", scope=Scope(include=("stem",)), macs=0.01), ["scope"], ["level 'auto'"]),
    ],
)
def test_a_budget_out_of_reach_offers_only_what_is_not_done_yet(residual, image, recipe, offered, not_offered):
    with pytest.raises(RecipeError, match="least that can be reached") as error:
        compress(residual, image, recipe)
    assert all(words in str(error.value) for words in offered)
    assert not any(words in str(error.value) for words in not_offered)


def test_what_no_budget_decomposes_has_its_own_reason():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 32, 3, padding=1, groups=32)]
    layers += [torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ConvTranspose2d(32, 8, 2, stride=2)]
    report = compress(torch.nn.Sequential(*layers).eval(), torch.randn(1, 3, 16, 16), _recipe("layer", macs=0.9)).report
    codes = {skipped.name: skipped.code for skipped in report.skipped}
    assert (codes["1"], codes["3"]) == ("one-input-channel", "not-a-convolution")
    dense = {layer.name for layer in report.budget.layers if layer.level is None}
    assert dense and {name for name, code in codes.items() if code == "no-rank"} == dense
