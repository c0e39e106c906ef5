"""``norton deploy``: from an artefact, or a detector's config and checkpoint, to the model that runs."""

import json
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from norton_plugin import Recipe, compress
from norton_plugin.artifact import read_manifest
from norton_plugin.blocks import CPDBlock
from norton_plugin.cli import advised
from norton_plugin.cli.recipes import read_recipe
from norton_plugin.deploy import comparison, load, load_prepared, measured, preparation, prepare, read_table
from norton_plugin.insight import deployment
from norton_plugin.zoo import load_source


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An artefact of a compressed ResNet-20."""
    source = load_source("cifar:resnet20")
    recipe = Recipe.from_dict({"decomposition": {"rank": 1, "sweeps": 2}, "pruning": {"keep": 0.8}})
    folder = tmp_path_factory.mktemp("deploy") / "small"
    compress(source.model, source.example_inputs, recipe).save(folder, source=source)
    return folder


@pytest.fixture
def no_stopwatch(monkeypatch):
    """Measuring is an error."""
    monkeypatch.setattr(measured, "compare_latency", None)
    monkeypatch.setattr(preparation, "compare_latency", None)


def outputs(model):
    x = torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        return model(x)


def test_measured_static_and_taken_over(norton, small, tmp_path, monkeypatch):
    answer = norton("deploy", small, "-o", tmp_path / "fast", "--rounds", 1, "--json")
    assert (answer.code, answer.err) == (0, "")
    told = json.loads(answer.out)
    assert sorted(path.name for path in (tmp_path / "fast").iterdir()) == [
        "forms.json",
        "model.safetensors",
        "norton.json",
        "recipe.yaml",
    ]
    assert json.loads((tmp_path / "fast" / "forms.json").read_text()) == told["table"]
    blocks = told["table"]["blocks"]
    assert blocks and all(b["milliseconds"] == min(b["candidates"].values()) for b in blocks)
    assert len(told["folded"]) == 19 and told["left"] == []
    assert told["macs_ratio"] == pytest.approx(told["macs_before"] / told["macs_after"])
    assert told["efficiency"] == pytest.approx(told["speedup"] / told["macs_ratio"])
    assert read_manifest(tmp_path / "fast").recipe == read_manifest(small).recipe

    monkeypatch.setattr(measured, "compare_latency", None)
    monkeypatch.setattr(preparation, "compare_latency", None)
    prepared = load_prepared(tmp_path / "fast")
    assert [(c.name, c.form) for c in prepared.table] == [(b["name"], b["form"]) for b in blocks]
    fast = load(tmp_path / "fast")
    with FlopCounterMode(display=False) as counter:
        outputs(fast)
    assert told["macs_run"] == counter.get_total_flops() // 2 > told["macs_after"]
    assert not any(isinstance(m, CPDBlock | nn.BatchNorm2d) for m in fast.modules())
    torch.testing.assert_close(outputs(fast), outputs(load(small)), rtol=1e-3, atol=1e-4)


def test_a_table_of_another_machine_is_taken_over(norton, small, tmp_path, no_stopwatch):
    assert norton("deploy", small, "-o", tmp_path / "one", "--static").code == 0
    table = json.loads((tmp_path / "one" / "forms.json").read_text())
    for block in table["blocks"]:
        block["form"] = "depthwise"
    (tmp_path / "mine.json").write_text(json.dumps(table))
    answer = norton("deploy", small, "-o", tmp_path / "two", "--static", "--table", tmp_path / "mine.json")
    assert answer.code == 2 and "--static measures nothing" in answer.err
    prepared = load_prepared(small, forms=read_table(tmp_path / "mine.json"))
    assert {choice.form for choice in prepared.table} == {"depthwise"}


def test_static_says_what_it_did(norton, small, tmp_path, no_stopwatch):
    answer = norton("deploy", small, "-o", tmp_path / "fast", "--static")
    assert answer.code == 0 and "norms folded: 19" in answer.out and "x fewer" in answer.out
    assert "ms dense" not in answer.out
    again = norton("deploy", tmp_path / "fast", "-o", tmp_path / "fast", "--static", "--json")  # in its own place
    assert again.code == 0 and json.loads(again.out)["speedup"] is None


def test_saved_macs_that_became_no_time_are_told_unless_time_was_the_budget(norton, small, tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "advice", lambda speed_up, macs_ratio: [f"ADVICE {macs_ratio:.2f}"])
    answer = norton("deploy", small, "-o", tmp_path / "fast", "--rounds", 1)
    ratio = read_manifest(small).report["macs_before"] / read_manifest(small).report["macs_after"]
    assert answer.code == 0 and f"ADVICE {ratio:.2f}" in answer.out
    assert "ADVICE" in norton("bench", small, "--rounds", "3", "--no-layers").out
    timed = replace(read_manifest(small), report={"budget": {"budget": {"macs": None, "latency": 0.5}}})
    assert advised.planned_for_time(timed)
    assert not advised.planned_for_time(read_manifest(small)) and not advised.planned_for_time(None)
    monkeypatch.setattr(advised, "planned_for_time", lambda manifest: manifest is not None)
    assert "ADVICE" not in norton("deploy", small, "-o", tmp_path / "fast", "--rounds", 1).out
    assert "ADVICE" not in norton("bench", small, "--rounds", "3", "--no-layers").out


def test_the_recipe_goes_with_the_artefact(norton, small, tmp_path, no_stopwatch):
    answer = norton("deploy", small, "-o", tmp_path / "fast", "--static")
    recipe = read_recipe(tmp_path / "fast" / "recipe.yaml")
    assert recipe.to_dict() == read_manifest(small).recipe and recipe.decomposition.rank == 1
    assert "".join(f"the recipe of the compression is {tmp_path / 'fast' / 'recipe.yaml'}".split()) in "".join(
        answer.out.split()
    )
    answer = norton("deploy", "cifar:resnet20", "-o", tmp_path / "fast", "--static")  # in its place, without a recipe
    assert answer.code == 0 and "the recipe of" not in answer.out and not (tmp_path / "fast" / "recipe.yaml").exists()


def test_a_dense_model_has_nothing_to_choose(norton, tmp_path, no_stopwatch):
    answer = norton("deploy", "cifar:resnet20", "-o", tmp_path / "fast", "--static")
    assert answer.code == 0 and "it was not decomposed" in answer.out and "norms folded: 19" in answer.out


def test_nothing_is_left_of_an_interrupted_run(norton, small, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measured, "compare_latency", interrupted)
    assert norton("deploy", small, "-o", tmp_path / "fast").code == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "neither a directory nor a model source"),
        (["{config}"], "is a config; give the checkpoint"),
        (["{small}", "{config}"], "expected CONFIG CHECKPOINT"),
        (["{small}", "--table", "{config}"], "the table .* cannot be read"),
        (["{small}", "--table", "{other}"], "names the block 'no.such', which the model does not have"),
        (["{small}", "--static", "--compile"], "--static measures nothing"),
        (["{small}", "--device", "cuda:99"], "torch finds . CUDA devices here"),
        (["{small}", "--device", "fast"], "--device is 'fast'; expected cpu, cuda or cuda:N"),
        (["{small}", "--device", "meta"], "--device is 'meta'; expected cpu, cuda or cuda:N"),
    ],
)
def test_bad_input(norton, small, tmp_path, arguments, message):
    config, other = tmp_path / "config.py", tmp_path / "other.json"
    config.write_text("model = 1\n")
    table = {"format": "norton-plugin forms", "version": 1, "memory_format": "contiguous", "machine": {}}
    block = {"name": "no.such", "form": "dense", "milliseconds": None}
    other.write_text(json.dumps({**table, "compiled": False, "folded": True, "blocks": [block]}))
    names = {"small": small, "config": config, "other": other}
    answer = norton("deploy", *[text.format(**names) for text in arguments], "-o", tmp_path / "fast")
    assert answer.code == 2 and re.search(message, " ".join(answer.err.split()))
    assert not (tmp_path / "fast").exists()


@pytest.mark.mm
def test_a_detector_is_timed_up_to_its_boxes(monkeypatch):
    pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")
    sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
    from detectors import retinanet
    from mmdet.structures import DetDataSample

    source = load_source("mmdet:tiny", input_size=64, kwargs={"model": retinanet()})
    prepared = prepare(source.model, source.example_inputs, forms="static", forward_fn=source.forward_fn)
    returned = []

    def seen(calls, **_):
        returned.extend(call() for call in calls)
        return SimpleNamespace(seconds=[2.0, 1.0])

    monkeypatch.setattr(comparison, "compare_latency", seen)
    compare = partial(
        comparison.compare_with_dense, source.model, prepared, source.example_inputs, source.spec, rounds=1
    )
    found = compare(forward_fn=source.forward_fn)
    assert (found.timed, found.speedup) == ("the detector up to its boxes", 2.0)
    assert all(isinstance(samples[0], DetDataSample) for samples in returned)
    assert returned[0][0].pred_instances.bboxes.shape[1] == 4

    monkeypatch.setattr(type(source.model), "predict", None)
    returned.clear()
    found = compare(forward_fn=source.forward_fn)
    assert found.timed == "the detector up to the tensors of its heads"
    assert not isinstance(returned[0], list) or not isinstance(returned[0][0], DetDataSample)


@pytest.mark.mm
def test_a_detector_by_its_config_and_checkpoint(norton, tmp_path, no_stopwatch):
    pytest.importorskip("mmdet", reason="needs mmdet: pip install 'norton-plugin[mmdet]'")
    sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
    from detectors import retinanet
    from mmengine.config import Config

    from norton_plugin.mm import export_config
    from norton_plugin.surgery.structure import structure_hash

    config = tmp_path / "detector.py"
    config.write_text(f"model = {retinanet()!r}\n")
    source = load_source(f"mmdet:{config}", input_size=64)
    recipe = Recipe.from_dict({"decomposition": {"rank": 1, "sweeps": 2}})
    model, report = compress(source.model, source.example_inputs, recipe, forward_fn=source.forward_fn)
    entry = {"structure": report.structure, "structure_hash": structure_hash(report.structure)}
    torch.save({"meta": {"norton": entry}, "state_dict": model.state_dict()}, tmp_path / "epoch_1.pth")
    torch.save({"meta": {}, "state_dict": source.model.state_dict()}, tmp_path / "dense.pth")
    export_config(Config.fromfile(config), report.structure).dump(str(tmp_path / "norton_config.py"))
    assert {b.form for b in model.modules() if isinstance(b, CPDBlock)} == {"auto"}

    x = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.bbox_head(model.extract_feat(x))
    for name in ("detector.py", "norton_config.py"):
        arguments = [tmp_path / name, tmp_path / "epoch_1.pth", "-o", tmp_path / "fast", "--static", "--input-size", 64]
        answer = norton("deploy", *arguments, "--json")
        assert answer.code == 0
        told = json.loads(answer.out)
        assert len(told["table"]["blocks"]) == len(report.decomposition.layers) and len(told["folded"]) == 20
        fast = load(tmp_path / "fast")
        assert not any(isinstance(m, CPDBlock | nn.BatchNorm2d) for m in fast.modules())
        with torch.no_grad():
            found = fast.bbox_head(fast.extract_feat(x))
        for a, b in zip(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    # What is timed is inference up to the boxes, of the deployed artefact too.
    answer = norton("bench", tmp_path / "fast", "--rounds", 1, "--no-layers", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["boxes"] and not json.loads(answer.out)["left"]
    answer = norton("bench", tmp_path / "fast", "--rounds", 1, "--no-layers")
    assert "in PyTorch the detector runs up to its boxes" in " ".join(answer.out.split())
    # Weights of the dense model, and those of another structure.
    assert norton("deploy", config, tmp_path / "dense.pth", "-o", tmp_path / "dense", "--static").code == 0
    torch.save({"meta": {}, "state_dict": model.state_dict()}, tmp_path / "lost.pth")
    answer = norton("deploy", config, tmp_path / "lost.pth", "-o", tmp_path / "lost", "--static")
    assert answer.code == 2 and "do not fit the dense model of the config" in answer.err
