"""MNASNet of torchvision refuses weights that carry no version."""

import pytest
import torch
from safetensors.torch import save_file

from norton_plugin import Recipe, compress, load
from norton_plugin.zoo import load_checkpoint_, load_source

models = pytest.importorskip("torchvision.models", reason="needs torchvision")


@pytest.fixture(scope="module")
def mnasnet():
    torch.manual_seed(0)
    return models.mnasnet0_5(num_classes=4).eval()


def test_artefacts_of_layers_with_versions_load(mnasnet, tmp_path):
    image = torch.randn(1, 3, 64, 64)
    result = compress(mnasnet, image, Recipe.from_dict({"pruning": {"keep": 0.7, "round_to": 1}, "verify": False}))
    result.save(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(
            load(tmp_path / "small", models.mnasnet0_5(num_classes=4).eval())(image), result.model(image)
        )


def test_checkpoints_of_layers_with_versions_load(mnasnet, tmp_path):
    save_file(mnasnet.state_dict(), tmp_path / "w.safetensors")
    other = models.mnasnet0_5(num_classes=4)
    load_checkpoint_(other, tmp_path / "w.safetensors")
    assert torch.equal(other.classifier[1].weight, mnasnet.classifier[1].weight)


def test_published_weights_of_layers_with_versions_load(mnasnet, monkeypatch):
    published = models.mnasnet0_5().state_dict()
    kind = type(models.MNASNet0_5_Weights.IMAGENET1K_V1)
    monkeypatch.setattr(kind, "get_state_dict", lambda *_, **__: published)
    loaded = load_source("torchvision:mnasnet0_5", pretrained=True, num_classes=4).model
    assert torch.equal(loaded.layers[0].weight, published["layers.0.weight"])
    assert loaded.classifier[1].weight.shape == (4, 1280)
