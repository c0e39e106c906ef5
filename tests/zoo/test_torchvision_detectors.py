"""Two-stage detectors of torchvision on fixed regions: what torchvision itself finds is the oracle."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision", reason="needs pip install 'norton-plugin[timm]'")

sys.path.insert(0, str(Path(__file__).parents[1]))
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops.poolers import LevelMapper
from torchvision_detectors import detector, image

from norton_plugin import Recipe, compress
from norton_plugin.channels import ChannelGraph
from norton_plugin.cost import count_cost
from norton_plugin.modules.running import calibrated_by, counted_by, distilled_by
from norton_plugin.zoo import forward_of, inference_of
from norton_plugin.zoo.fixed_regions import regions_of_levels
from norton_plugin.zoo.torchvision_detectors import OnRegions, level_begins, trace_of

HALF = Recipe.from_dict({"pruning": {"keep": 0.5}})


def of(model):
    return forward_of({"kind": "torchvision"}, model, (image(),))


@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint"])
def test_a_narrow_pyramid_finds_what_the_silenced_one_finds(kind):
    """Its last channels are zero, and then gone, though the detector finds nothing in the example."""
    model = detector(kind)
    with torch.no_grad():
        for level in (model.backbone.first, model.backbone.second):
            for parameter in level[-1].parameters():
                parameter[16:] = 0
        expected = model(list(image(seed=1)))[0]
        model.roi_heads.score_thresh = 0.99
        assert len(model(list(image()))[0]["boxes"]) == 0
        ChannelGraph(model, (image(),), forward_fn=of(model)).prune("backbone.first.0", range(16, 32))
        model.roi_heads.score_thresh = 0.2
        found = model(list(image(seed=1)))[0]
    assert model.backbone.first[0].out_channels == 16 and model.rpn.head.conv[0][0].in_channels == 16
    assert len(expected["boxes"]) == 20 and set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "groups"), [("mask", 8), ("keypoint", 7)])
def test_what_is_pruned_does_not_hang_on_what_is_found(kind, groups):
    reports = []
    for least_score in (0.2, 0.99):
        model = detector(kind)
        model.roi_heads.score_thresh = least_score
        reports.append(compress(model, (image(),), HALF, forward_fn=of(model))[1])
    for report in reports:
        assert len(report.pruning.groups) == groups and report.macs_after < 0.28 * report.macs_before
        assert {skipped.code for skipped in report.pruning.skipped} == {"model-output"}
    assert reports[0].macs_before == reports[1].macs_before
    # A plain call leaves the heads, and all that they read, where nothing is found.
    model.roi_heads.score_thresh = 0.99
    plain = compress(model, (image(),), HALF)[1]
    assert "nothing-to-compute" in {skipped.code for skipped in plain.pruning.skipped}


def test_macs_are_those_of_the_regions_that_a_detector_reads():
    model = detector("mask")
    run = counted_by(of(model))
    cost = count_cost(model, lambda: run(model, (image(),))).layer_macs
    assert cost["roi_heads.box_head.fc6"] == 40 * (32 * 7 * 7) * 64  # rpn_post_nms_top_n_test
    assert cost["roi_heads.mask_head.0.0"] == 20 * (32 * 9 * 32) * 14 * 14  # box_detections_per_img
    model.rpn._post_nms_top_n["testing"] = 10_000  # of 3 anchors at each of 16x16 and 8x8 places
    run = counted_by(of(model))
    cost = count_cost(model, lambda: run(model, (image(),))).layer_macs
    assert cost["roi_heads.box_head.fc6"] == 3 * (16 * 16 + 8 * 8) * (32 * 7 * 7) * 64


def test_images_are_run_up_to_the_boxes_and_two_models_are_compared_on_few_regions():
    model = detector("mask")
    trace = of(model)
    with torch.no_grad():
        [first, second] = calibrated_by(trace)(model, (image(count=2),))
        expected = model(list(image(count=2)))
        assert torch.equal(first["boxes"], expected[0]["boxes"]) and torch.equal(second["masks"], expected[1]["masks"])
        _, boxes, masks = distilled_by(trace)(model, (image(count=2),))
    assert boxes[0].shape == (66, 4) and masks.shape == (66, 4, 28, 28)
    whole = inference_of({"kind": "torchvision"}, model)
    with torch.no_grad():
        assert torch.equal(whole(model, (image(count=2),))[0]["boxes"], expected[0]["boxes"])


def test_regions_are_read_from_every_level():
    levels = [torch.zeros(1, 8, size, size) for size in (200, 100, 50, 25)]
    boxes = regions_of_levels(40, (800, 800), level_begins(levels, 800), like=levels[0])
    assert LevelMapper(2, 5)([boxes]).bincount().tolist() == [10, 10, 10, 10]
    assert bool((boxes[:, :2] >= 0).all()) and bool((boxes[:, :2] <= 400).all())
    assert torch.equal(boxes, regions_of_levels(40, (800, 800), level_begins(levels, 800), like=levels[0]))


class Heads(RoIHeads):
    """Heads of a user's own, which read more."""

    def forward(self, features, proposals, image_shapes, targets=None):
        return super().forward(features, proposals, image_shapes, targets)


def test_detectors_of_ones_own_are_run_as_they_are(caplog):
    for model in (detector("retina"), detector("fcos"), nn.Conv2d(3, 4, 3)):
        assert trace_of(model, image()) is None
    model = detector("faster")
    model.roi_heads.__class__ = Heads
    assert trace_of(model, image()) is None
    caplog.set_level(logging.INFO, logger="norton_plugin")
    model = detector("faster")
    model.backbone.unused = nn.Conv2d(3, 4, 3)
    assert trace_of(model, image()) is None
    assert "backbone.unused does not run on fixed regions" in caplog.text
    model = detector("faster").train()
    model.roi_heads.box_head = nn.Identity()
    assert trace_of(model, image()) is None and model.training
    assert "heads do not run on fixed regions (AssertionError: " in caplog.text


def test_a_function_of_ones_own_may_return_one():
    trace = forward_of({"kind": "python"}, detector("faster"), (image(),))
    assert isinstance(counted_by(trace)._trace, OnRegions)
    assert forward_of({"kind": "python"}, nn.Conv2d(3, 4, 3), (image(),)) is None
    assert inference_of({"kind": "python"}, nn.Conv2d(3, 4, 3)) is None


def test_the_number_of_regions_is_odd():
    """A trace takes the size of an axis that equals a layer's width for channels; widths are mostly even."""
    trace, covered = trace_of(detector("mask"), image())
    assert (trace.regions, trace.objects) == (41, 21) and covered == "the whole detector, its heads on fixed regions"
    assert trace.counted.regions == 40 and trace.counted.objects == 20
