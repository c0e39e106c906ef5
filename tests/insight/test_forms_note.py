"""What is said of blocks that run as plain convolutions."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from norton_plugin import Budget, Recipe, compress
from norton_plugin.budget import BudgetPlan
from norton_plugin.cost import count_cost
from norton_plugin.deploy import prepare
from norton_plugin.insight import note_on_forms
from norton_plugin.insight.numbers import short


@pytest.fixture
def compressed():
    def make(channels, size, decomposition):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.ReLU()]
        example = torch.randn(1, 3, size, size)
        result = compress(nn.Sequential(*layers).eval(), example, Recipe.from_dict({"decomposition": decomposition}))
        return result.model, example, result.report

    return make


def test_blocks_on_small_maps_run_as_convolutions_and_it_is_said(compressed):
    model, example, report = compressed(16, 8, {"rank": 1})
    ready = prepare(model, example, fold=False).model
    run = count_cost(ready, partial(ready, example)).macs
    assert run > report.macs_after  # the factors are not what runs
    words = note_on_forms(model, example, report)
    assert words.startswith("2 of 2 blocks should be no faster in factors")
    assert f"{short(run)} MACs run, not {short(report.macs_after)}" in words
    assert words.endswith("give a budget of milliseconds (budget.latency, --budget latency=F)")
    planned = replace(report, budget=BudgetPlan(Budget(latency=0.5), 0.5, 0.5, "weights", 0.0, ()))
    assert note_on_forms(model, example, planned).endswith("writes the model that takes that time")


def test_a_layer_that_two_places_share_counts_twice(compressed):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    example = torch.randn(1, 16, 8, 8)
    model, report = compress(
        nn.Sequential(layer, nn.ReLU(), layer).eval(), example, Recipe.from_dict({"decomposition": {"rank": 1}})
    )
    ready = prepare(model, example, fold=False).model
    run = count_cost(ready, partial(ready, example)).macs
    assert run == 2 * 16 * 16 * 9 * 64
    words = note_on_forms(model, example, report)
    assert words.startswith("1 of 1 blocks")
    assert re.search(f"{short(run)} MACs run", words)


def test_nothing_is_said_where_all_blocks_run_in_factors_or_there_are_none(compressed):
    model, example, report = compressed(256, 56, {"level": "layer", "components": 16, "layers": {"0": {"rank": None}}})
    assert note_on_forms(model, example, report) is None
    plain = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert note_on_forms(plain, torch.randn(1, 3, 8, 8), report) is None
