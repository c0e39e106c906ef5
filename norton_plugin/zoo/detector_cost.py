"""What the MACs of a detector are counted on: all of it, with as many regions as its config asks for.

A trace of channels leaves out heads that it cannot follow, and the proposals of a network differ from one set of
weights to the next. Costs are therefore counted in mmdet's own mode ``tensor``, which ``get_flops.py`` counts too, on
a fixed number of proposals: ``test_cfg.rpn.max_per_img``, or all candidates where a small image has fewer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from mmdet.models.detectors import DetectionTransformer, TwoStageDetector
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from norton_plugin.zoo.visible_operators import visible_operators

# Regions whose masks mmdet computes in its mode "tensor" (StandardRoIHead.forward and its like).
_MASKED = 100
# What mmdet takes where a config says nothing: its usual numbers of proposals and of detections per image.
_PROPOSALS, _DETECTIONS = 1000, 100


def run_tensor_mode(model: nn.Module, example: Tensor) -> Any:
    """Run all of a detector in mode ``tensor``, as for images that are not padded.

    Args:
        model: A detector.
        example: Normalised images (B, 3, H, W).
    """
    trained = model.training and isinstance(model, DetectionTransformer)
    samples = image_samples(tuple(example.shape[-2:]), example, objects=int(trained))
    with visible_operators():
        if trained:
            return _transformer_in_training(model, example, samples)
        return model(example, samples, mode="tensor")


def _transformer_in_training(model: Any, example: Tensor, samples: list[DetDataSample]) -> Any:
    """Run a detection transformer up to its losses; mmdet's mode ``tensor`` hands its head more than that takes."""
    made = model.forward_transformer(model.extract_feat(example), samples)
    taken = inspect.signature(model.bbox_head.forward).parameters
    outputs = model.bbox_head.forward(**{name: value for name, value in made.items() if name in taken})
    return [outputs, [value for name, value in made.items() if name not in taken]]


def image_samples(size: tuple[int, ...], images: Tensor, *, objects: int = 0) -> list[DetDataSample]:
    """Return what mmdet tells of images that are not padded.

    Args:
        size: (H, W).
        images: A tensor of as many as its first dimension.
        objects: Boxes of the first class that each image holds: some detectors learn from them in their first layers.
    """
    facts = {
        "img_shape": size,
        "batch_input_shape": size,
        "pad_shape": size,
        "ori_shape": size,
        "scale_factor": (1.0, 1.0),
    }
    samples = [DetDataSample(metainfo=dict(facts)) for _ in range(len(images))]
    boxes, labels = constant_boxes(objects, size, like=images), images.new_zeros(objects).long()
    for sample in samples:  # mmdet's pipelines pack them always, and some heads ask for them always
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    return samples


def run_for_cost(model: nn.Module, example: Tensor) -> Any:
    """Run all of a detector as ``run_tensor_mode`` does, on a number of proposals that does not depend on weights."""
    with _fixed_proposals(model, tuple(example.shape[-2:])):
        return run_tensor_mode(model, example)


def proposals_of(model: Any) -> int:
    """Return the most proposals per image that a detector's config lets through, for its box heads."""
    found = _setting(model, "rpn", "max_per_img")
    return _PROPOSALS if found is None else int(found)


def detections_of(model: Any) -> int:
    """Return the most detections per image that a detector's config lets through, for its mask heads."""
    found = _setting(model, "rcnn", "max_per_img")
    return _DETECTIONS if found is None else int(found)


def regions_in_words(model: Any, levels: Sequence[Tensor]) -> str:
    """Say how many regions the heads of a two-stage detector are counted on; empty for other detectors.

    Args:
        model: A detector.
        levels: Its pyramid, for the candidates that an image of this size has.
    """
    if not isinstance(model, TwoStageDetector):
        return ""
    if _setting(model, "rpn", "max_per_img") is None:
        return "with the regions that its own proposals are"
    count = _count(model, levels)
    asked = proposals_of(model)
    limit = "test_cfg.rpn.max_per_img" if count == asked else f"all candidates; test_cfg.rpn.max_per_img is {asked}"
    masks = f", masks of {min(count, _MASKED)}" if getattr(model.roi_head, "mask_head", None) is not None else ""
    return f"with {count} regions ({limit}){masks}"


def _setting(model: Any, part: str, name: str) -> Any:
    settings = (getattr(model, "test_cfg", None) or {}).get(part)
    return (settings or {}).get(name)


def _count(model: Any, levels: Sequence[Tensor]) -> int:
    """Return the number of proposals: as asked for, or all candidates where the pyramid has fewer."""
    before = _setting(model, "rpn", "nms_pre") or 0
    per_place = getattr(getattr(model.rpn_head, "prior_generator", None), "num_base_priors", [1] * len(levels))
    candidates = 0
    for level, priors in zip(levels, per_place, strict=False):
        here = level.shape[-2] * level.shape[-1] * priors
        candidates += min(here, before) if before > 0 else here
    return min(proposals_of(model), candidates)


@contextmanager
def _fixed_proposals(model: Any, size: tuple[int, ...]) -> Iterator[None]:
    """Let the RPN run as ever, and hand constant boxes of a fixed number to the heads behind it."""
    head = getattr(model, "rpn_head", None)
    if not isinstance(model, TwoStageDetector) or head is None or _setting(model, "rpn", "max_per_img") is None:
        yield
        return
    own = head.predict

    def predict(levels: Sequence[Tensor], *args: Any, **options: Any) -> list[InstanceData]:
        found = own(levels, *args, **options)
        boxes = constant_boxes(_count(model, levels), size, like=levels[0])
        return [InstanceData(bboxes=boxes, scores=boxes.new_ones(len(boxes))) for _ in found]

    with patch.object(head, "predict", predict):
        yield


def constant_boxes(count: int, size: tuple[int, ...], *, like: Tensor) -> Tensor:
    """Return boxes (count, 4) inside an image of the given size (H, W), of all sizes, the same every time."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    corners = torch.rand(count, 2, 2, generator=generator).sort(1).values * torch.tensor([width, height])
    return corners.flatten(1).to(like)
