"""Detectors of torchvision, run by steps that exporters can follow: what torchvision itself finds is the oracle."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision", reason="needs pip install 'norton-plugin[timm]'")

sys.path.insert(0, str(Path(__file__).parents[1]))
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection import roi_heads, transform
from torchvision.ops import boxes as box_operators
from torchvision.ops import poolers
from torchvision_detectors import SIDE, detector, image

from norton_plugin.errors import ExportError
from norton_plugin.zoo import exported_part, torchvision_export
from norton_plugin.zoo.torchvision_export import WholeDetector

KINDS = ["faster", "mask", "keypoint", "retina", "fcos"]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_torchvision_finds(kind):
    model, images = detector(kind), image()
    expected, found = model(list(images))[0], WholeDetector()(model, (images,))
    assert len(expected["boxes"]) >= 20
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(found[name], expected[name])


def test_masks_are_those_of_the_inside_of_each_box():
    model, images = detector("mask"), image()
    expected, found = model(list(images))[0], WholeDetector()(model, (images,))
    assert found["masks"].shape == (20, 1, 28, 28)
    pasted = roi_heads.paste_masks_in_image(found["masks"], found["boxes"], (SIDE, SIDE))
    torch.testing.assert_close(pasted, expected["masks"])


def test_keypoints_are_the_peaks_of_the_heat_maps():
    model, images = detector("keypoint"), image()
    expected, found = model(list(images))[0], WholeDetector()(model, (images,))
    assert found["heat_maps"].shape == (20, 3, 56, 56) and not {"keypoints", "keypoints_scores"} & set(found)
    keypoints, scores = roi_heads.heatmaps_to_keypoints(found["heat_maps"], found["boxes"])
    torch.testing.assert_close(keypoints, expected["keypoints"])
    torch.testing.assert_close(scores, expected["keypoints_scores"])


@pytest.mark.parametrize("side", [40, 100])
def test_heat_maps_are_drawn_in_the_image_as_the_network_sees_it(side):
    """The recipe of docs/export.md, where torchvision resizes the image."""
    model, images = detector("keypoint"), torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    expected, found = model(list(images))[0], WholeDetector()(model, (images,))
    torch.testing.assert_close(found["boxes"], expected["boxes"])
    seen, _ = model.transform(list(images))
    ratio = seen.image_sizes[0][0] / side
    keypoints, scores = roi_heads.heatmaps_to_keypoints(found["heat_maps"], found["boxes"] * ratio)
    keypoints[..., :2] /= ratio
    torch.testing.assert_close(keypoints, expected["keypoints"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scores, expected["keypoints_scores"])


@pytest.mark.parametrize("classes", [1, 4, 91, 1204])
def test_boxes_of_many_classes_are_suppressed_as_class_by_class(classes):
    generator = torch.Generator().manual_seed(classes)
    corners = torch.randint(0, 64 * 1300, (2000, 2), generator=generator) / 64  # no digit of a sum is lost
    boxes = torch.cat([corners, corners + torch.randint(64, 64 * 300, (2000, 2), generator=generator) / 64], 1)
    scores = torch.rand(2000, generator=generator)
    labels = torch.randint(classes, (2000,), generator=generator)
    expected = box_operators._batched_nms_vanilla(boxes, scores, labels, 0.5)
    assert torch.equal(torchvision_export._batched_nms(boxes, scores, labels, 0.5), expected)
    assert 0 < len(expected) < 2000


def test_other_threads_wait_and_torchvision_is_as_it_was():
    own, model = steps(), detector("faster")
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: WholeDetector()(model, (image(),)), range(6)))
    assert steps() == own and all(torch.equal(each["boxes"], found[0]["boxes"]) for each in found)


def test_a_detector_that_returns_something_else_is_refused():
    model = detector("faster")
    own = model.forward
    model.forward = lambda images: tuple(own(images))
    with pytest.raises(
        ExportError, match="returns a tuple; expected what torchvision's return, a list with one mapping"
    ):
        WholeDetector()(model, (image(),))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_in_which_nothing_is_found(kind):
    model, images = detector(kind), image()
    found = WholeDetector(least_score=1.0)(model, (images,))
    assert {len(tensor) for tensor in found.values()} == {0} and found["boxes"].shape == (0, 4)


def steps():
    owners = box_operators, poolers, detection_utils, detection_utils.BoxCoder, transform, roi_heads
    names = ("batched_nms", "_multiscale_roi_align", "_topk_min", "decode", "paste_masks_in_image",
             "keypointrcnn_inference", "resize_keypoints")  # fmt: skip
    return {(owner.__name__, name): getattr(owner, name) for owner in owners for name in names if hasattr(owner, name)}


def test_torchvision_is_as_it_was_afterwards():
    own = steps()
    model = detector("faster")
    WholeDetector()(model, (image(),))
    assert len(own) >= 7 and steps() == own
    model.roi_heads.box_head = nn.Identity()
    with pytest.raises(AssertionError, match="wrong shape"):
        WholeDetector(least_score=0.5)(model, (image(),))
    assert steps() == own and model.roi_heads.score_thresh == 0.2


@pytest.mark.parametrize("kind", ["faster", "retina"])
def test_scores_are_lowered_until_something_is_found(kind):
    model, images = detector(kind), image()
    own = model.roi_heads if kind == "faster" else model
    part = WholeDetector()
    assert part.telling(model, (images,)) is part
    own.score_thresh = 64.0
    telling = part.telling(model, (images,))
    assert len(telling(model, (images,))["boxes"]) >= 10
    assert len(WholeDetector(2 * telling.least_score)(model, (images,))["boxes"]) < 10
    assert own.score_thresh == 64.0 and len(part(model, (images,))["boxes"]) == 0


def test_a_file_takes_one_image():
    with pytest.raises(ExportError, match="takes one image at a time, not 2; leave out the batch"):
        WholeDetector()(detector("faster"), (image(count=2),))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("faster", "the whole detector, for one image in [0, 1]: boxes, labels and scores"),
        ("mask", ", and the mask of the inside of each box"),
        ("keypoint", ", and heat maps of the keypoints of each box"),
    ],
)
def test_what_a_file_holds_is_said(kind, words):
    for source in ("torchvision", "python"):  # a function of the user's own may return one
        part, told = exported_part({"kind": source}, detector(kind))
        assert isinstance(part, WholeDetector) and told.endswith(words)


def test_a_plain_call_runs_other_models():
    for source in ("torchvision", "python", "timm"):
        assert exported_part({"kind": source}, nn.Conv2d(3, 4, 3)) == (None, "the whole model")
