"""Other families and tasks of Ultralytics: the structure is rebuilt, and norms fold."""

import pytest
import torch
from torch import nn

from norton_plugin import CPDBlock, Recipe
from norton_plugin.modules.running import output_tensors
from norton_plugin.yolo import compress_yolo_

pytestmark = pytest.mark.slow

BOTH = Recipe.from_dict({"decomposition": {"rank": 3, "sweeps": 2}, "pruning": {"keep": 0.7}})
NAMES = ("yolov5n", "yolov9t", "yolov10n", "yolo26n", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb", "yolo11n-cls")


@torch.no_grad()
def first_output(model, images):
    return output_tensors(model.eval()(images))[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_compressed_model_is_rebuilt_and_folds(name):
    from ultralytics import YOLO

    yolo = YOLO(f"{name}.yaml")
    for norm in (module for module in yolo.model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.8, 1.6)
    images = torch.rand(2, 3, 96, 96)
    dense = first_output(yolo.model, images)
    report = compress_yolo_(yolo, BOTH, image_size=64)
    assert report.status == "full"
    assert any(isinstance(module, CPDBlock) for module in yolo.model.modules())
    small = first_output(yolo.model, images)
    assert not torch.allclose(small, dense, rtol=1e-4)
    again = type(yolo.model)(yolo.model.yaml, verbose=False)
    again.load(yolo.model, verbose=False)
    assert torch.equal(first_output(again, images), small)
    yolo.fuse(verbose=False)
    torch.testing.assert_close(first_output(yolo.model, images), small, rtol=1e-4, atol=1e-4)
