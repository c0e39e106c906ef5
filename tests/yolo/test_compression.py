"""YOLOs that are compressed run, fold, validate and export as the model that came out of the compression."""

import copy

import pytest
import torch
from yolos import SIZE, image

from norton_plugin import CPDBlock, Recipe, RecipeError, SurgeryError
from norton_plugin.yolo import compress_yolo_

BOTH = Recipe.from_dict({"decomposition": {"rank": 3, "sweeps": 5}, "pruning": {"keep": 0.7}})
SHARED = Recipe.from_dict({"decomposition": {"level": "layer", "share": 0.4, "sweeps": 2}})
FAMILIES = ("yolov8n", "yolo11n", "yolo12n")
# Layers whose outputs go to the head alone.
NECK = {"yolov8n": ("15.cv2", "18.cv2", "21.cv2"), "yolo11n": ("16.cv2", "19.cv2", "22.cv2"),
        "yolo12n": ("14.cv2", "17.cv2", "20.cv2")}  # fmt: skip


@pytest.fixture
def images():
    return torch.stack([image(number) for number in range(3)]) / 255


@torch.no_grad()
def scores_and_boxes(model, images):
    return model(images)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compressed_model_validates_as_itself(family, build, self_labelled, tmp_path):
    yolo, dense = build(family), build(family)
    report = compress_yolo_(yolo, BOTH, image_size=SIZE)
    data = self_labelled(yolo.model)
    settings = {"data": data, "imgsz": SIZE, "rect": False, "device": "cpu", "workers": 0, "plots": False}
    assert report.macs_after < 0.55 * report.macs_before
    assert yolo.val(**settings, project=tmp_path, name="own").box.map == pytest.approx(0.995)  # the most there is
    assert dense.val(**settings, project=tmp_path, name="dense").box.map < 0.6


@pytest.mark.parametrize(("family", "recipe"), [*((family, BOTH) for family in FAMILIES), ("yolov8n", SHARED)])
def test_norms_fold_into_blocks(family, recipe, build, images):
    yolo = build(family)
    compress_yolo_(yolo, recipe, image_size=SIZE)
    expected = scores_and_boxes(yolo.model, images)
    assert any(isinstance(module, CPDBlock) for module in yolo.model.modules())
    assert torch.unique(expected[:, 4:]).numel() > 100
    yolo.fuse(verbose=False)
    assert not [name for name, module in yolo.model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert any(isinstance(module, CPDBlock) for module in yolo.model.modules())
    torch.testing.assert_close(scores_and_boxes(yolo.model, images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_head_reads_is_pruned_and_what_it_says_is_not(family, build, images):
    yolo = build(family)
    dense = {name: module for name, module in yolo.model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    compress_yolo_(yolo, BOTH, image_size=SIZE)
    small = dict(yolo.model.named_modules())
    for layer in NECK[family]:
        assert small[f"model.{layer}.conv"].out_channels < dense[f"model.{layer}.conv"].out_channels
    assert scores_and_boxes(yolo.model, images).shape == (3, 4 + 3, 8 * 8 + 4 * 4 + 2 * 2)


def test_what_others_read_off_the_model_stays(build):
    yolo = build("yolov8n")
    yolo.model.args = {"imgsz": SIZE}
    given, strides = yolo.model, yolo.model.stride.clone()
    state = {name: value.clone() for name, value in given.state_dict().items()}
    compress_yolo_(yolo, BOTH, image_size=SIZE)
    assert yolo.model is not given
    assert all(torch.equal(value, state[name]) for name, value in given.state_dict().items())
    assert (yolo.model.names, yolo.model.args, yolo.model.task) == (given.names, {"imgsz": SIZE}, "detect")
    assert torch.equal(yolo.model.stride, strides) and torch.equal(yolo.model.model[-1].stride, strides)


def test_compressed_again_it_is_rebuilt_in_two_steps(build, images):
    from ultralytics.nn.tasks import DetectionModel

    yolo = build("yolov8n")
    compress_yolo_(yolo, Recipe.from_dict({"pruning": {"keep": 0.8}}), image_size=SIZE)
    compress_yolo_(yolo, Recipe.from_dict({"decomposition": {"rank": 2, "sweeps": 2}}), image_size=SIZE)
    again = DetectionModel(yolo.model.yaml, nc=3, verbose=False)
    again.load(yolo.model, verbose=False)
    assert torch.equal(scores_and_boxes(again.eval(), images), scores_and_boxes(yolo.model, images))


def test_a_fused_model_is_refused(build):
    yolo = build("yolov8n")
    yolo.fuse(verbose=False)
    with pytest.raises(SurgeryError, match="fused for inference.*load the checkpoint anew"):
        compress_yolo_(yolo, BOTH, image_size=SIZE)


def test_what_holds_no_model_is_refused():
    with pytest.raises(SurgeryError, match="got object with NoneType"):
        compress_yolo_(object(), BOTH)


def test_a_recipe_that_asks_for_nothing_changes_nothing(build):
    yolo = build("yolov8n")
    given, checkpoint = yolo.model, copy.copy(yolo.ckpt)
    with pytest.raises(RecipeError):
        compress_yolo_(yolo, Recipe(), image_size=SIZE)
    assert yolo.model is given and yolo.ckpt == checkpoint
