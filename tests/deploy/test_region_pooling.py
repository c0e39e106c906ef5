"""Region pooling of prepared detectors: torchvision's operator, equal to mmcv's to the bit."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmcv.ops", reason="needs mmcv with its operators")

sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
from detectors import faster_rcnn
from mmcv.ops import RoIAlign
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict

from norton_plugin.deploy import prepare
from norton_plugin.deploy.region_pooling import pool_by_torchvision_

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


def test_prepared_detectors_pool_by_torchvision():
    register_all_modules()
    model = MODELS.build(ConfigDict(faster_rcnn())).eval()
    prepared = prepare(model, torch.randn(1, 3, 64, 64), forward_fn=lambda own, x: own.extract_feat(x)).model
    layers = [[m for m in each.modules() if isinstance(m, RoIAlign)] for each in (prepared, model)]
    assert len(layers[0]) == 4 and all(layer.use_torchvision for layer in layers[0])
    assert not any(layer.use_torchvision for layer in layers[1])
