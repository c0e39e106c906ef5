"""The sequential pass on models of all kinds: every layer is fitted, or says why not."""

import pytest
import torch
from torch import nn

from norton_plugin import Recipe, compress
from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.modules.running import calibrated_by, run_model
from norton_plugin.recipe import Calibration, Decomposition
from norton_plugin.zoo import load_source

NARROW = {"channels": [16, 32, 64, 64]}


def _detector(name: str, heads: tuple[str, ...]):
    """Build a narrow detector of mmdet from one of its configs."""
    read = pytest.importorskip("norton_plugin.zoo.mmdet_configs").read
    from norton_plugin.zoo.mmdet_configs import to_json

    config = read(name)
    config["backbone"]["base_channels"] = 8
    config["neck"] |= {"in_channels": [8, 16, 32, 64], "out_channels": 16}
    for head in heads:
        config[head] |= {"in_channels": 16, "feat_channels": 16}
    if "roi_head" in config:
        config["roi_head"]["bbox_roi_extractor"]["out_channels"] = 16
        config["roi_head"]["bbox_head"] |= {"in_channels": 16, "fc_out_channels": 32}
    return load_source(f"mmdet:{name}", input_size=64, kwargs={"model": to_json(config)})


def _timm(name: str, **kwargs):
    return load_source(f"timm:{name}", input_size=64, kwargs=kwargs)


# Model, and whether outputs of some of its layers are added to a stream.
MODELS = {
    "ResNet-18": (lambda: _timm("resnet18", **NARROW), True),
    "ResNet-50": (lambda: _timm("resnet50", **NARROW), True),
    "MobileNetV2": (lambda: _timm("mobilenetv2_050"), True),
    "MobileNetV3": (lambda: _timm("mobilenetv3_small_050"), True),
    "DenseNet": (lambda: _timm("densenet121", growth_rate=8, block_config=[2, 2, 2, 2]), False),
    "EfficientNet": (lambda: _timm("test_efficientnet"), False),
    "ConvNeXt": (lambda: _timm("test_convnext"), True),
    "ViT": (lambda: _timm("vit_tiny_patch16_224", depth=2), True),
    "RetinaNet": (lambda: _detector("retinanet/retinanet_r18_fpn_1x_coco", ("bbox_head",)), True),
    "Faster R-CNN": (lambda: _detector("faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco", ("rpn_head",)), True),
}


DETECTORS = ("RetinaNet", "Faster R-CNN")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.mm] if name in ("RetinaNet", "Faster R-CNN") else []) for name in MODELS],
)
def test_every_layer_is_fitted_or_says_why_not(name):
    torch.manual_seed(0)
    build, added = MODELS[name]
    source = build()
    images = [(torch.rand(4, 3, 64, 64),) for _ in range(3)]
    forward_fn = calibrated_by(source.forward_fn)
    reestimate_batch_norm_(source.model, images, call=lambda model, batch: run_model(model, batch, forward_fn))
    recipe = Recipe(
        decomposition=Decomposition(level="layer", share=0.5, linear=True, restarts=1, sweeps=5),
        calibration=Calibration(fit=True),
    )
    settings = {"calibration": images, "forward_fn": source.forward_fn}
    _, report = compress(source.model, source.example_inputs, recipe, **settings)
    found = report.calibration
    expected = {n for n, m in source.model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {layer.name for layer in found.layers} | {left for left, _ in found.left} == expected
    assert all(reason for _, reason in found.left)
    sequential = [layer for layer in found.layers if layer.target != "symmetric"]
    assert len(sequential) >= 0.8 * len(found.layers)
    assert all(layer.note for layer in found.layers if layer.target != "stream")
    assert any(layer.target == "stream" for layer in found.layers) is added
    assert all(layer.nmse_after <= layer.nmse_before * (1 + 1e-6) for layer in sequential if layer.decomposed)
