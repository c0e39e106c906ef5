"""Compressed models of transformers are saved by their own method, and come back as what they were."""

import json
import subprocess
import sys

import pytest
import torch

import norton_plugin
from norton_plugin import ArtifactError, Recipe, SurgeryError, compress
from norton_plugin.hf import register_loader

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")

PRUNED = Recipe.from_dict({"pruning": {"keep": 0.5}})
DECOMPOSED = Recipe.from_dict({"decomposition": {"rank": 1, "sweeps": 2}})
BOTH = Recipe.from_dict({"decomposition": {"level": "layer", "share": 0.6, "sweeps": 2}, "pruning": {"keep": 0.7}})
STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_labels": 5}
NETWORKS = {
    "ResNet": ("ForImageClassification", {**STAGES, "embedding_size": 16}),
    "ConvNext": ("ForImageClassification", STAGES),
    "ViT": (
        "ForImageClassification",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 64,
        },
    ),
    "Segformer": ("ForSemanticSegmentation", {**STAGES, "decoder_hidden_size": 32}),
}


def build(name):
    kind, settings = NETWORKS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}{kind}")(config).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, images):
    return model(images).logits


@pytest.mark.parametrize("recipe", [PRUNED, BOTH], ids=["pruned", "both"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_compressed_model_comes_back(name, recipe, images, tmp_path):
    dense = build(name)
    small = compress(dense, images[:1], recipe).model
    assert not torch.allclose(logits(small, images), logits(dense, images), atol=1e-3)
    small.save_pretrained(tmp_path)
    again, found = type(dense).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in small.state_dict().items()}
    torch.testing.assert_close(logits(again, images), logits(small, images), rtol=1e-5, atol=1e-6)


def test_the_dense_model_carries_nothing(images):
    dense = build("ResNet")
    compress(dense, images[:1], PRUNED)
    assert "quantization_config" not in dense.config.to_dict()


def test_a_loaded_model_is_trained_cast_and_saved_again(images, tmp_path):
    compress(build("ResNet"), images[:1], DECOMPOSED).model.save_pretrained(tmp_path / "first")
    model = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "first").train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    model(images, labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    heads = [name for name in before if name.endswith(".head")]
    assert heads
    assert all(not torch.equal(before[name], value) for name, value in model.named_parameters() if name in heads)
    model.eval().double().save_pretrained(tmp_path / "second")
    again = type(model).from_pretrained(tmp_path / "second", dtype=torch.float64)
    torch.testing.assert_close(logits(again, images.double()), logits(model, images.double()))


def test_compressed_twice_it_is_rebuilt_in_two_steps(images, tmp_path):
    once = compress(build("ResNet"), images[:1], PRUNED).model
    twice = compress(once, images[:1], DECOMPOSED).model
    twice.save_pretrained(tmp_path)
    again = type(twice).from_pretrained(tmp_path)
    assert torch.equal(logits(again, images), logits(twice, images))
    assert len(json.loads(once.config.quantization_config.structures)) == 1


def test_an_artefact_gives_a_model_that_can_be_saved(images, tmp_path):
    result = compress(build("ResNet"), images[:1], PRUNED)
    result.save(tmp_path / "artefact")
    loaded = norton_plugin.load(tmp_path / "artefact", build("ResNet"))
    loaded.save_pretrained(tmp_path / "saved")
    again = type(loaded).from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again, images), logits(result.model, images))


def test_in_a_fresh_process_the_loader_is_asked_for(images, tmp_path):
    small = compress(build("ResNet"), images[:1], DECOMPOSED).model
    small.save_pretrained(tmp_path)
    code = (
        "import sys, torch; from transformers import ResNetForImageClassification as Net; sys.argv[2:] and "
        "__import__('norton_plugin.hf').hf.register_loader(); net = Net.from_pretrained(sys.argv[1]); "
        "print('HEADS', sum(name.endswith('.head') for name in net.state_dict()))"
    )

    def heads(*asked):
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path, *asked], capture_output=True, text=True, check=True
        )
        return int(done.stdout.split("HEADS")[1]), done.stderr

    assert heads("yes")[0] == sum(name.endswith(".head") for name in small.state_dict()) > 0
    found, said = heads()  # transformers alone: a dense model with random weights, and a warning
    assert found == 0
    assert "Unknown quantization type, got norton" in said


def test_structures_that_do_not_fit_are_refused(images, tmp_path):
    compress(build("ResNet"), images[:1], PRUNED).model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for structures, message in (
        ("[1]", "no list of structures"),
        ("[", "no JSON"),
        (json.dumps([{"version": 1}]), "damaged|version"),
    ):
        config["quantization_config"]["structures"] = structures
        path.write_text(json.dumps(config))
        with pytest.raises(ArtifactError, match=message):
            transformers.ResNetForImageClassification.from_pretrained(tmp_path)
    config["quantization_config"]["structures"] = "[]"
    config["hidden_sizes"] = [16, 32, 48, 72]
    path.write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.ResNetForImageClassification.from_pretrained(tmp_path)


def test_a_quantised_model_is_refused(images):
    model = build("ResNet")
    model.config.quantization_config = transformers.BitsAndBytesConfig()
    with pytest.raises(SurgeryError, match="quantised already .*BitsAndBytesConfig"):
        compress(model, images[:1], PRUNED)


def test_registering_twice_changes_nothing():
    register_loader()
    register_loader()
