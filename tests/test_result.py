"""What compress gives back: unpacked, indexed, saved, and loaded with and without the dense model."""

import json

import pytest
import torch

import norton_plugin
from norton_plugin import ArtifactError, CompressionResult, Recipe, SourceError, compress, load_source
from norton_plugin.recipe import Decomposition, Pruning

RECIPE = Recipe(decomposition=Decomposition(rank=2, sweeps=5, restarts=1), pruning=Pruning(keep=0.5, round_to=1))


def same_outputs(first, second, image):
    with torch.no_grad():
        return torch.equal(first.eval()(image), second.eval()(image))


def test_it_unpacks_to_model_and_report(residual, image):
    result = compress(residual, image, RECIPE)
    model, report = result
    assert isinstance(result, CompressionResult)
    assert (model, report) == (result.model, result.report) == (result[0], result[1])
    assert result.recipe is RECIPE
    assert len(report.decomposition.layers) > 0
    assert len(report.pruning.groups) > 0


def test_it_saves_itself_and_loads_into_the_dense_model(residual, image, tmp_path):
    result = compress(residual, image, RECIPE)
    assert result.save(tmp_path / "small", extra={"top1": 91.0}) == tmp_path / "small"
    assert same_outputs(norton_plugin.load(tmp_path / "small", residual), result.model, image)
    manifest = json.loads((tmp_path / "small" / "norton.json").read_text())
    assert manifest["recipe"] == RECIPE.to_dict()
    assert manifest["report"]["macs_after"] == result.report.macs_after
    assert manifest["extra"] == {"top1": 91.0}
    with pytest.raises(ArtifactError, match=r"does not say what built its model; .* load\(directory, model\)"):
        norton_plugin.load(tmp_path / "small")


def test_a_source_takes_the_place_of_the_dense_model(tmp_path):
    source = load_source("cifar:resnet20")
    result = compress(source.model, source.example_inputs, RECIPE)
    result.save(tmp_path / "whole", source=source)
    result.save(tmp_path / "spec", source=source.spec)
    for name in ("whole", "spec"):
        before = torch.get_rng_state()
        loaded = norton_plugin.load(tmp_path / name)
        assert torch.equal(torch.get_rng_state(), before)
        assert not loaded.training
        assert same_outputs(loaded, result.model, source.example_inputs[0])
    extra = json.loads((tmp_path / "whole" / "norton.json").read_text())["extra"]
    assert extra["preprocessing"]["input_size"] == [3, 32, 32]
    assert extra["inputs"] == 1


def test_a_source_of_code_asks_to_be_trusted(residual, image, tmp_path):
    result = compress(residual, image, RECIPE)
    result.save(tmp_path / "code", source={"kind": "python", "name": "networks:Residual", "kwargs": {}})
    with pytest.raises(SourceError, match="not run unasked"):
        norton_plugin.load(tmp_path / "code")
    assert same_outputs(norton_plugin.load(tmp_path / "code", trust_code=True), result.model, image)
