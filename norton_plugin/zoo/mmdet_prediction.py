"""What a detector of mmdet finds in images."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor
from torch.nn.functional import pad

# Sides of images become multiples of it, as pipelines of mmdet pad them, with this value.
_MULTIPLE, _GRAY = 32, 114


def found_by(model: Any, picture: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Run a detector as its test does, from the pixels on.

    Args:
        model: In evaluation mode, dense or compressed.
        picture: uint8 (3, H, W) in RGB.

    Returns:
        Scores (N,), labels (N,), boxes (N, 4) and masks (N, H, W), None where it makes none.
    """
    height, width = picture.shape[-2:]
    facts = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    blue_first = picture.flip(0)  # as mmcv reads images; the model's own preprocessor turns them where it wants RGB
    if getattr(model.data_preprocessor, "pad_size_divisor", 1) == 1:  # else it pads them itself
        blue_first = pad(blue_first, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), value=_GRAY)
    (found,) = model.test_step({"inputs": [blue_first], "data_samples": [DetDataSample(metainfo=facts)]})
    objects = found.pred_instances
    masks = objects.get("masks")
    if masks is not None and not isinstance(masks, Tensor):
        masks = masks.to_tensor(torch.bool, objects.bboxes.device)
    return objects.scores, objects.labels, objects.bboxes, masks


def boxes_of(model: Any, images: Tensor) -> list[DetDataSample]:
    """Run a detector from normalised images to its boxes and masks: what inference costs, without reading files.

    Args:
        model: In evaluation mode, dense or compressed.
        images: Normalised (B, 3, H, W).

    Returns:
        What it found in every image.
    """
    size = tuple(images.shape[-2:])
    facts = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
    samples = [DetDataSample(metainfo={**facts, "scale_factor": (1.0, 1.0)}) for _ in range(len(images))]
    found: list[DetDataSample] = model.predict(images, samples)
    return found
