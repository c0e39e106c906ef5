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


def test_levels(layers):
    _, by_name = layers
    wide, strided, point = by_name["layer3.conv2"], by_name["layer3.conv1"], by_name["layer2.downsample.0"]
    # the most components M with M (C + Kh + Kw + N) below 9 N C
    assert (wide["break_even_components"], wide["shared"]) == ((9 * 128 * 128 - 1) // (128 + 6 + 128), True)
    assert (strided["in_channels"], strided["break_even_components"]) == (64, (9 * 64 * 128 - 1) // (64 + 6 + 128))
    # no kernel to factorise: M (C + N) below N C
    assert (point["break_even"], point["break_even_components"]) == (0, (32 * 64 - 1) // (32 + 64))
    assert (point["eligible"], point["shared"]) == (False, True)
    assert (by_name["fc"]["break_even_components"], by_name["fc"]["shared"]) == (1279 // 138, True)
    assert (by_name["conv1"]["eligible"], by_name["conv1"]["shared"]) == (False, False)
    assert {layer["level"] for layer in by_name.values()} == {None}


def test_levels_of_an_artefact(norton, tmp_path):
    options = ["--level", "layer", "--components", 9, "--linear", "--layer", "layer1.conv1:level=filter,rank=2"]
    assert norton("compress", "demo:digits", *options, "-o", tmp_path / "a").code == 0
    found = json.loads(norton("inspect", tmp_path / "a", "--json").out)["layers"]
    by_name = {layer["name"]: layer for layer in found}
    sizes = ("kind", "level", "rank", "clusters", "components", "code", "shared")
    assert [by_name["fc"][size] for size in sizes] == ["CPDLinear", "layer", 9, 1, 9, "decomposed", False]
    assert [by_name["layer1.conv1"][size] for size in sizes[:5]] == ["CPDBlock", "filter", 2, None, None]
    assert [by_name["layer3.conv2"][size] for size in sizes[:5]] == ["CPDBlock", "layer", 9, 1, 9]
    assert by_name["layer3.conv2"]["break_even_components"] == 562
    shown = norton("inspect", tmp_path / "a").out
    assert "done: level filter," in shown and "done: level layer, 9" in shown  # the rest may be folded


def test_curves(norton):
    options = ["--curve", "--layer", "layer3.conv2", "--layer", "fc", "--json"]
    answer = norton("inspect", "demo:digits", *options)
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    assert [curve["name"] for curve in found["curves"]] == ["layer3.conv2", "fc"]
    assert {point["nmse"] for curve in found["curves"] for point in curve["points"]} == {None}
    assert [point["macs"] for point in found["front"]] == sorted(point["macs"] for point in found["front"])
    assert {point["milliseconds"] for point in found["front"]} == {None}
    shown = norton("inspect", "demo:digits", *options[:-1]).out
    assert "the whole model, as foretold" in shown
    assert "Conv2d 3x3 128 -> 128, 2.36 M MACs" in shown and "NMSE" not in shown
    assert "NMSE: ||W - W^||^2 / ||W||^2" in norton("inspect", "demo:digits", "--curve", "--layer", "fc", "--nmse").out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nmse"], "--nmse says what --curve shows; add --curve"),
        (["--layer", "fc"], "--layer says what --curve shows; add --curve"),
        (["--latency-table", "x"], "--latency-table says what --curve shows; add --curve"),
        (["--curve", "--layer", "fc", "--latency-table", "x"], "the table of milliseconds 'x' cannot be read"),
        (["--curve", "--layer", "layer9"], "--layer pattern 'layer9' matches none of the model's"),
        (["--curve", "--layer", "conv1"], "no layer can be decomposed at any level: one input channel per filter"),
    ],
)
def test_curves_that_cannot_be_shown(norton, options, message):
    answer = norton("inspect", "demo:digits", *options)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err


def test_table_says_the_totals(norton):
    answer = norton("inspect", "demo:digits")
    assert answer.code == 0
    words = " ".join(answer.out.split())
    assert "12.1 M MACs, 308 k parameters; 6 of 10 layers can be decomposed and hold 97.2 % of the MACs" in words
    assert "3 more at level layer (1x1, Linear) hold 2.2 %" in words


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
