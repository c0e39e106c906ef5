"""Region pooling of prepared detectors: torchvision's operator, equal to mmcv's to the bit."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv.ops", reason="needs mmcv with its operators")

sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
from detectors import detected, faster_rcnn
from mmcv.ops import RoIAlign
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict

from norton_plugin.deploy import prepare
from norton_plugin.deploy.region_pooling import pool_by_torchvision_
from norton_plugin.deploy.table import DeploymentTable

pytestmark = pytest.mark.mm


@pytest.mark.parametrize(("ratio", "aligned"), [(0, True), (2, True), (0, False)])
def test_both_operators_agree_to_the_bit(ratio, aligned):
    torch.manual_seed(0)
    features, corners = torch.randn(2, 5, 23, 31), torch.rand(40, 2, 2).sort(1).values * 150 - 10
    regions = torch.cat([torch.arange(40)[:, None] % 2, corners.flatten(1)], 1)
    layer = RoIAlign(7, spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
    expected = layer(features, regions)
    assert pool_by_torchvision_(layer) == ("",) and layer.use_torchvision
    assert torch.equal(layer(features, regions), expected) and expected.abs().sum() > 0


def test_maxima_stay():
    layer = torch.nn.ModuleList([RoIAlign(7, pool_mode="max"), RoIAlign(7)])
    assert pool_by_torchvision_(layer) == ("1",) and not layer[0].use_torchvision


@pytest.mark.parametrize(("mode", "memory_format"), [("avg", "channels_last"), ("max", "contiguous")])
def test_prepared_detectors_find_what_they_found(mode, memory_format):
    """mmcv's own RoIAlign reads a channels-last map as if it were contiguous, and finds other boxes."""
    register_all_modules()
    config = faster_rcnn()
    config["roi_head"]["bbox_roi_extractor"]["roi_layer"]["pool_mode"] = mode
    torch.manual_seed(0)
    model, image = MODELS.build(ConfigDict(config)).eval(), torch.randn(1, 3, 64, 64)
    table = DeploymentTable((), "channels_last", False, True, {})
    prepared = prepare(model, image, forms=table, forward_fn=lambda own, x: own.extract_feat(x))
    assert prepared.deployment.memory_format == memory_format
    layers = [[m for m in each.modules() if isinstance(m, RoIAlign)] for each in (prepared.model, model)]
    assert len(layers[0]) == 4 and all(layer.use_torchvision == (mode == "avg") for layer in layers[0])
    assert not any(layer.use_torchvision for layer in layers[1])
    expected, actual = detected(model, image), detected(prepared.model, image)
    assert len(actual) == len(expected) > 0
    assert torch.allclose(actual.bboxes, expected.bboxes, atol=1e-3) and torch.equal(actual.labels, expected.labels)
