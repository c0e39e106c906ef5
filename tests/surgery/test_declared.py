"""Widths that models declare for code around them are true after surgery, and after loading."""

import copy

import pytest
import torch
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.structure import apply_structure_

timm = pytest.importorskip("timm", reason="needs timm: pip install 'norton-plugin[timm]'")

HALF = Recipe.from_dict({"pruning": {"keep": 0.5, "round_to": 1}})
# A head of its own kind each: fc, a head convolution, a head module, tokens, an MLP of convolutions.
MODELS = {
    "resnet18": 64,
    "mobilenetv3_small_050": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 224,
    "densenet121": 64,
}


@pytest.fixture(scope="module", params=MODELS)
def pruned(request):
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=10).eval()
    image = torch.randn(1, 3, MODELS[request.param], MODELS[request.param])
    return model, image, compress(model, image, HALF)


def test_widths_of_timm_are_those_of_the_features(pruned):
    model, image, result = pruned
    small = result.model
    with torch.no_grad():
        features = small.forward_features(image)
        hidden = small.forward_head(features, pre_logits=True)
    assert small.num_features == features.shape[1 if features.dim() == 4 else -1] < model.num_features
    assert small.head_hidden_size == hidden.shape[1] < model.head_hidden_size
    for entry, old in zip(small.feature_info, model.feature_info, strict=True):
        seen = []
        handle = small.get_submodule(entry["module"]).register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
        with torch.no_grad():
            small(image)
        handle.remove()
        assert entry["num_chs"] == seen[0].shape[1 if seen[0].dim() == 4 else -1]
        assert {**entry, "num_chs": 0} == {**old, "num_chs": 0}
    assert any(new["num_chs"] < old["num_chs"] for new, old in zip(small.feature_info, model.feature_info, strict=True))


def test_another_classifier_fits(pruned):
    _, image, result = pruned
    small = copy.deepcopy(result.model)
    small.reset_classifier(7)
    assert small(image).shape == (1, 7)
    assert isinstance(small.get_classifier(), nn.Linear)


def test_the_structure_brings_them_along(pruned):
    model, image, result = pruned
    again = timm.create_model(type_name(model), num_classes=10).eval()
    before = [dict(entry) for entry in model.feature_info]
    apply_structure_(again, result.report.structure)
    assert geometry(again) == geometry(result.model)
    assert again.feature_info == result.model.feature_info
    assert model.feature_info == before  # the dense model keeps its own


def type_name(model):
    return model.pretrained_cfg["architecture"]


def test_an_example_of_one_image_does_not_confuse_tokens_with_channels():
    """A ViT's 197 tokens stay; a width that only looks like another axis is not taken for it."""
    from norton_plugin.surgery.declared import _axis

    assert _axis((1, 512, 7, 7), 512) == 1
    assert _axis((1, 7, 7, 512), 512) == 3
    assert _axis((1, 197, 192), 192) == 2
    assert _axis((1, 197, 192), 191) is None


def test_a_network_of_features_keeps_what_it_returns():
    torch.manual_seed(0)
    model = timm.create_model("resnet18", features_only=True, out_indices=(2, 3)).eval()
    image = torch.randn(1, 3, 64, 64)
    small = compress(model, image, HALF).model
    channels = [feature.shape[1] for feature in small(image)]
    assert small.feature_info.channels() == channels == [128, 256]
    assert (small.feature_info.info[1]["num_chs"], model.feature_info.info[1]["num_chs"]) == (32, 64)  # not returned
    assert small.layer2[0].conv1.out_channels == 64


def test_a_width_that_a_model_of_torchvision_declares():
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)

    class Pyramid(nn.Module):
        """Declares the width of what it returns, as torchvision's BackboneWithFPN does."""

        def __init__(self):
            super().__init__()
            self.body = models.resnet18().layer1
            self.out_channels = 64

        def forward(self, x):
            return {"0": self.body(x)}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.backbone, self.head = nn.Conv2d(3, 64, 3), Pyramid(), nn.Conv2d(64, 5, 1)

        def forward(self, x):
            return self.head(self.backbone(self.stem(x))["0"])

    small = compress(Net().eval(), torch.randn(1, 3, 16, 16), HALF).model
    assert small.backbone.out_channels == small.head.in_channels == 32


def test_an_artefact_is_built_by_timms_own_function(tmp_path):
    from norton_plugin.artifact import register_timm_loader
    from norton_plugin.errors import SourceError
    from norton_plugin.zoo import load_source

    torch.manual_seed(0)
    source = load_source("timm:resnet18", num_classes=10, input_size=64)
    recipe = Recipe.from_dict({"decomposition": {"rank": 1, "restarts": 1}, "pruning": {"keep": 0.5, "round_to": 1}})
    result = compress(source.model, source.example_inputs, recipe)
    result.save(tmp_path / "small", source=source.spec)
    register_timm_loader()
    register_timm_loader()
    image = source.example_inputs[0]
    with torch.no_grad():
        expected = result.model.eval()(image)
        again = timm.create_model("norton_artifact", path=str(tmp_path / "small"), pretrained=True)
        assert torch.equal(again.eval()(image), expected)
        other = timm.create_model("norton_artifact", path=str(tmp_path / "small"), num_classes=3)
        assert other(image).shape == (1, 3)
        kwargs = {"features_only": True, "out_indices": (1, 4)}
        features = timm.create_model("norton_artifact", path=str(tmp_path / "small"), **kwargs)
        assert features.feature_info.channels() == [each.shape[1] for each in features(image)] == [32, 256]
    with pytest.raises(SourceError, match="no path"):
        timm.create_model("norton_artifact")
    with pytest.raises(SourceError, match=r"\['drop_rate'\]"):
        timm.create_model("norton_artifact", path="x", drop_rate=0.1)


@pytest.mark.parametrize("name", ["mobileone_s0", "fastvit_t8"])
def test_branches_are_joined_after_pruning(name):
    """The second form of a block is built from widths that the block keeps for it, and nothing else reads."""
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    model, image = timm.create_model(name, num_classes=10).eval(), torch.randn(1, 3, 64, 64)
    small = compress(model, image, HALF).model
    joined = reparameterize_model(small)
    assert len(list(joined.modules())) < len(list(small.modules()))
    with torch.no_grad():
        expected = small(image)
        assert float((joined(image) - expected).abs().max()) < 1e-4 * float(expected.abs().max())
