"""Recipes: validation, round trips, and the pattern language."""

import json

import pytest
import torch

from norton_plugin.errors import RecipeError
from norton_plugin.patterns import lookup, matches, require_matches
from norton_plugin.recipe import Calibration, Decomposition, Pruning, Recipe, Scope

FULL = Recipe(
    scope=Scope(include=("backbone",), exclude=("*.downsample.*",)),
    decomposition=Decomposition(rank="auto", ranks={"layer1": 2, "re:layer[34].*": None}, target_nmse=0.05, seed=3),
    pruning=Pruning(keep=0.7, keeps={"layer4": 0.5}, round_to=4, criterion="csa"),
    calibration=Calibration(batch_norm=False, images=64, fit=True, positions=16, seed=7),
    verify=False,
)


def test_round_trip_through_json():
    text = json.dumps(FULL.to_dict())
    assert Recipe.from_dict(json.loads(text)) == FULL
    assert Recipe.from_dict({}) == Recipe()
    assert Recipe() != FULL


def test_a_single_pattern_may_be_a_string():
    assert Recipe.from_dict({"scope": {"include": "backbone"}}).scope.include == ("backbone",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"decomposition": {"rank": 0}}, "decomposition.rank is 0; expected a whole number from 1"),
        ({"decomposition": {"rank": -3}}, "decomposition.rank is -3"),
        ({"decomposition": {"rank": 10**9}}, "decomposition.rank is 1000000000"),
        ({"decomposition": {"rank": 2.5}}, "decomposition.rank is 2.5"),
        ({"decomposition": {"rank": True}}, "decomposition.rank is True"),
        ({"decomposition": {"ranks": {"layer1": 0}}}, r"decomposition.ranks\['layer1'\] is 0"),
        ({"decomposition": {"target_nmse": 0}}, "decomposition.target_nmse is 0"),
        ({"pruning": {"keep": 0}}, r"pruning.keep is 0; expected a number in \(0, 1\]"),
        ({"pruning": {"keep": 1.5}}, "pruning.keep is 1.5"),
        ({"pruning": {"keep": float("nan")}}, "pruning.keep is nan"),
        ({"pruning": {"keeps": {"a": -0.1}}}, r"pruning.keeps\['a'\] is -0.1"),
        ({"pruning": {"round_to": 0}}, "pruning.round_to is 0"),
        ({"pruning": {"round_to": "wide"}}, "pruning.round_to is 'wide'; expected a whole number from 1 to 1024"),
        (
            {"pruning": {"criterion": "l1"}},
            "pruning.criterion is 'l1'; expected one of pabs, output, l2, random, vbd, csa",
        ),
        ({"pruning": {"keeep": 0.5}}, "unknown setting pruning.'keeep'; did you mean 'keep'"),
        ({"decompose": {"rank": 1}}, "did you mean 'decomposition'"),
        ({"pruning": 0.5}, "pruning. is 0.5; expected a table"),
        ({"scope": {"include": [1]}}, "scope.include"),
        ({"verify": "yes"}, "verify is 'yes'"),
    ],
)
def test_bad_settings_say_what_came_and_what_was_expected(data, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(data)


@pytest.mark.parametrize(("capability", "expected"), [("AVX512", 16), ("AVX2", 8), ("DEFAULT", 8)])
def test_automatic_widths_fill_the_registers_and_are_kept_as_a_number(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    recipe = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": "auto"}})
    assert recipe.to_dict()["pruning"]["round_to"] == expected


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("layer1", "layer1", True),
        ("layer1", "layer1.0.conv2", True),
        ("layer1", "layer10.conv", False),
        ("*.conv2", "layer1.0.conv2", True),
        ("*.conv2", "conv2", False),
        ("layer[34].*", "layer4.1.conv1", True),
        ("layer[34].*", "layer2.1.conv1", False),
        (r"re:layer\d\.0\..*", "layer3.0.conv1", True),
        (r"re:layer\d", "layer3.0", False),
    ],
)
def test_patterns(pattern, name, expected):
    assert matches(pattern, name) is expected


def test_the_last_matching_pattern_counts():
    table = {"layer1": 1, "*.conv2": 2}
    assert [lookup(table, name, 9) for name in ("layer1.0.conv1", "layer1.0.conv2", "stem")] == [1, 2, 9]


def test_a_pattern_that_matches_nothing_is_quoted_with_the_closest_names():
    with pytest.raises(RecipeError, match=r"'layer5' matches none of the model's 2 layers; closest names: layer4"):
        require_matches(["layer5"], ["layer4", "fc"], what="scope.include")
    with pytest.raises(RecipeError, match="not a valid regular expression"):
        matches("re:(", "x")


def test_scope_admits():
    scope = Scope(include=("backbone",), exclude=("*.downsample.*",))
    assert scope.admits("backbone.layer1") and not scope.admits("neck.conv")
    assert not scope.admits("backbone.layer2.downsample.0")
    assert Scope().admits("anything")


def test_former_names_are_read_with_a_warning():
    with pytest.warns(FutureWarning, match="'allow_dearer' is now called 'allow_more_macs'"):
        recipe = Recipe.from_dict({"decomposition": {"rank": 3, "allow_dearer": True}})
    assert recipe.decomposition == Decomposition(rank=3, allow_more_macs=True)
    assert "allow_dearer" not in recipe.to_dict()["decomposition"]
    with pytest.raises(RecipeError, match="former name of 'allow_more_macs', which is given too"):
        Recipe.from_dict({"decomposition": {"allow_dearer": True, "allow_more_macs": True}})
