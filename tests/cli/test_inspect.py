"""``norton inspect``: costs from closed forms, reasons in words."""

import json

import pytest


@pytest.fixture
def layers(norton):
    answer = norton("inspect", "demo:digits", "--json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    return found, {layer["name"]: layer for layer in found["layers"]}


def test_costs_follow_the_closed_forms(layers):
    found, by_name = layers
    assert found["source"] == {"kind": "demo", "name": "digits", "kwargs": {}}
    assert found["input_size"] == [1, 16, 16]
    assert by_name["layer1.conv1"]["macs"] == 32 * 32 * 9 * 16 * 16
    assert by_name["layer1.conv1"]["parameters"] == 32 * 32 * 9
    assert by_name["layer3.downsample.0"]["macs"] == 64 * 128 * 4 * 4
    assert by_name["fc"]["macs"] == 128 * 10
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])


def test_break_even_and_reasons(layers):
    _, by_name = layers
    wide = by_name["layer3.conv2"]
    # 9C / (C + 6) = 8.6 for C = 128
    assert (wide["break_even"], wide["eligible"], wide["code"], wide["reason"]) == (8, True, "", "")
    assert (wide["kernel"], wide["in_channels"], wide["out_channels"]) == ([3, 3], 128, 128)
    assert not by_name["layer2.downsample.0"]["eligible"]
    assert by_name["layer2.downsample.0"]["code"] == "kernel-1x1"
    assert by_name["fc"]["reason"] == "a Linear layer is pruned only"
    assert by_name["fc"]["break_even"] is None


def test_table_says_the_totals(norton):
    answer = norton("inspect", "demo:digits")
    assert answer.code == 0
    assert "12.1 M MACs, 308 k parameters; 6 of 10 layers can be decomposed and hold 97.2 % of the MACs" in answer.out


def test_scope(norton):
    answer = norton("inspect", "demo:digits", "--exclude", "layer3", "--json")
    eligible = [layer["name"] for layer in json.loads(answer.out)["layers"] if layer["eligible"]]
    assert eligible == ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"]


def test_timm_model_at_another_size(norton):
    pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")
    small, large = (
        json.loads(norton("inspect", "timm:test_resnet", "--input-size", s, "--json").out) for s in (32, 64)
    )
    assert small["parameters"] == large["parameters"]
    stem = [found["layers"][0] for found in (small, large)]
    assert stem[1]["macs"] == 4 * stem[0]["macs"] > 0
