"""What a model finds in an image, whatever ecosystem it is of."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo import Preprocessing, load_source
from norton_plugin.zoo.prediction import Prediction, class_names, picture_of, predict

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'norton-plugin[timm]'")
pytest.importorskip("torchvision", reason="needs torchvision: pip install 'norton-plugin[timm]'")
sys.path.insert(0, str(Path(__file__).parents[1] / "mm"))
INSIDE = Preprocessing((3, 64, 64), (0.0,) * 3, (1.0,) * 3, crop_pct=1.0)
TORCHVISION = {"kind": "torchvision", "name": "maskrcnn_resnet50_fpn", "kwargs": {}}


class Finds(nn.Module):
    """A detector in the manner of torchvision that finds the same two things everywhere."""

    def forward(self, images):
        (image,) = images
        assert image.shape == (3, 30, 40) and float(image.max()) == 1.0
        masks = torch.zeros(2, 1, 30, 40)
        masks[0, 0, :10] = 0.9
        return [
            {
                "boxes": torch.tensor([[1.0, 2.0, 20.0, 12.0], [5.0, 5.0, 39.0, 29.0]]),
                "labels": torch.tensor([1, 3]),
                "scores": torch.tensor([0.9, 0.2]),
                "masks": masks,
                "keypoints": torch.arange(2 * 4 * 3.0).view(2, 4, 3),
            }
        ]


def test_detectors_of_torchvision():
    picture = picture_of(Image.new("RGB", (40, 30), (255, 0, 0)), TORCHVISION, INSIDE)
    found = predict(Finds(), picture, TORCHVISION, INSIDE)
    assert found.masks.sum((1, 2)).tolist() == [400, 0]
    assert found.keypoints.shape == (2, 4, 2)
    kept = found.above(0.5)
    assert (kept.labels.tolist(), kept.boxes.tolist()) == ([1], [[1.0, 2.0, 20.0, 12.0]])
    assert kept.masks.shape == (1, 30, 40) and kept.keypoints.shape == (1, 4, 2)
    assert class_names(TORCHVISION)[1] == "person"
    assert class_names({**TORCHVISION, "kwargs": {"num_classes": 3}}) == ()


def test_classifiers():
    preprocessing = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3, crop_pct=1.0)
    spec = {"kind": "timm", "name": "any", "kwargs": {}}
    picture = picture_of(Image.new("RGB", (8, 8), (255, 255, 255)), spec, preprocessing)
    seen = {}

    class Scores(nn.Module):
        def forward(self, x):
            seen["x"] = x
            return torch.tensor([[0.0, 0.0, 50.0]])

    found = predict(Scores(), picture, spec, preprocessing)
    assert found.scores.tolist() == pytest.approx([0, 0, 1])
    assert found.above(0.9) is found
    assert seen["x"].shape == (1, 3, 8, 8) and torch.all(seen["x"] == 2)  # (1 - 0.5) / 0.25
    with pytest.raises(SourceError, match=r"returns shape \(1, 3, 8, 8\); expected scores"):
        predict(nn.Identity(), picture, spec, preprocessing)
    with pytest.raises(SourceError, match="expected a list of objects"):
        predict(nn.Identity(), picture, TORCHVISION, INSIDE)


@pytest.mark.mm
@pytest.mark.parametrize("mask", [False, True])
def test_detectors_of_mmdet_see_the_image_as_mmdet_gives_it(tmp_path, mask):
    import numpy as np
    from detectors import faster_rcnn
    from mmdet.structures import DetDataSample

    config = tmp_path / "detector.py"
    model = faster_rcnn(mask)
    model["data_preprocessor"] |= {"mean": [10.0, 20.0, 30.0], "std": [50.0, 60.0, 70.0], "bgr_to_rgb": True}
    config.write_text(f"model = {model!r}\n")
    torch.manual_seed(0)
    source = load_source(f"mmdet:{config}", input_size=64)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8))
    picture = picture_of(image, source.spec, source.preprocessing)
    assert picture.shape == (3, 32, 64)  # all of it, within 64 x 64
    found = predict(source.model, picture, source.spec, source.preprocessing)
    mean, std = (v.cpu() for v in (source.model.data_preprocessor.mean, source.model.data_preprocessor.std))
    inputs = ((picture.float() - mean) / std)[None]
    facts = {"img_shape": (32, 64), "ori_shape": (32, 64), "scale_factor": (1.0, 1.0), "batch_input_shape": (32, 64)}
    with torch.no_grad():
        (expected,) = source.model.predict(inputs, [DetDataSample(metainfo=facts)])
    torch.testing.assert_close(found.boxes, expected.pred_instances.bboxes)
    torch.testing.assert_close(found.scores, expected.pred_instances.scores)
    assert len(found.boxes) > 0
    assert (found.masks is not None) is mask
    if mask:
        assert found.masks.shape == (len(found.boxes), 32, 64)


def test_what_is_drawn_is_in_its_place():
    from norton_plugin.pictures.drawing import draw

    picture = torch.zeros(3, 60, 80, dtype=torch.uint8)
    mask = torch.zeros(1, 60, 80, dtype=torch.bool)
    mask[0, 40:50, 50:60] = True
    box = torch.tensor([[30.0, 20.0, 10.0, 5.0]])  # with its corners the wrong way round, as rounding leaves some
    found = Prediction(torch.tensor([0.75]), torch.tensor([1]), box, mask, torch.tensor([[[70.0, 10.0]]]))
    image, words = draw(picture, found, ("none", "cell"))
    assert words == "1 object: 1 cell" and image.size == (80, 60)
    lit = {point: image.getpixel(point) != (0, 0, 0) for point in [(10, 15), (55, 45), (70, 10), (70, 55), (45, 30)]}
    assert lit == {(10, 15): True, (55, 45): True, (70, 10): True, (70, 55): False, (45, 30): False}
    image, words = draw(picture[:1], Prediction(torch.tensor([0.1, 0.7, 0.2])))
    assert words.split("\n")[:2] == ["class 1: 70 %", "class 2: 20 %"] and image.size == (240, 180)
