"""``norton demo --quick``: everything it promises is there and agrees."""

import json

import pytest
import torch

from norton_plugin.artifact import load, read_manifest
from norton_plugin.zoo import load_source

# What the compressed networks are made with: rank, share of the channels kept.
RECIPES = {"half": (7, 0.75), "third": (4, 0.75), "seventh": (4, 0.5)}


def right_answers(artefact, model=None):
    """How many of the test images a network gets right, counted here."""
    from norton_plugin.zoo.demo import load_digits

    source, data = load_source("demo:digits"), load_digits()
    model = model or load(artefact, source.model).eval()
    with torch.no_grad():
        logits = model((data.test_images / 255 - source.mean[0]) / source.std[0])
    return int((logits.argmax(1) == data.test_labels).sum())


@pytest.mark.slow
def test_quick_demo(norton, tmp_path):
    for module, extra in (("sklearn", "demo"), ("mmengine", "timm"), ("matplotlib", "insight"), ("jinja2", "insight")):
        pytest.importorskip(module, reason=f"needs {module}: pip install 'norton-plugin[{extra}]'")
    answer = norton("demo", "--quick", "-o", tmp_path / "demo", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert (found["train_images"], found["test_images"], found["quick"]) == (1437, 360, True)
    shares = [each["macs"] / found["dense"]["macs"] for each in found["compressed"]]
    assert shares == pytest.approx([0.5, 0.3, 0.15], abs=0.02)
    assert found["dense"]["parameters"] == 308_074
    assert found["dense"]["accuracy"] > 80
    assert all(each["accuracy_after"] > 60 for each in found["compressed"])
    accuracies = [found["dense"]["accuracy"], *(each["accuracy_before"] for each in found["compressed"])]
    counts = [accuracy * 360 / 100 for accuracy in accuracies]
    assert counts == pytest.approx([round(count) for count in counts])  # right answers among 360 images
    assert all(0.05 < each["latency_ratio"] < 100 for each in found["compressed"])

    assert (tmp_path / "demo" / "demo.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "demo" / "report.html").read_text()
    assert found["page"] == str(tmp_path / "demo" / "report.html")
    assert page.count("data:image/png;base64,") == 1  # the plot of the run
    assert all(f"{each['accuracy_after']:.2f}" in page and each["recipe"] in page for each in found["compressed"])
    assert "layer3.conv2" in page and "Similar filters" in page
    written = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert written == {key: value for key, value in found.items() if key not in ("directory", "seconds", "page")}
    for each in found["compressed"]:
        assert read_manifest(tmp_path / "demo" / each["name"]).extra["demo"] == each
        inspected = json.loads(norton("inspect", tmp_path / "demo" / each["name"], "--json").out)
        assert (inspected["macs"], inspected["parameters"]) == (each["macs"], each["parameters"])
        assert right_answers(tmp_path / "demo" / each["name"]) == pytest.approx(each["accuracy_after"] * 360 / 100)
        rank, keep = RECIPES[each["name"]]
        assert each["recipe"] == f"rank {rank}, keep {keep}"
        ranks = {layer["rank"] for layer in inspected["layers"] if layer["kernel"] == [3, 3]}
        assert ranks - {None} == {rank}
    assert [each["name"] for each in found["compressed"]] == list(RECIPES)
    dense = load_source("demo:digits", checkpoint=tmp_path / "demo" / "dense.safetensors").model
    assert right_answers(tmp_path / "demo" / "half", dense) == counts[0]
