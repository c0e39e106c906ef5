"""Run a model of any ecosystem on one image as its users do, and bring what it found into one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.errors import SourceError
from norton_plugin.zoo.class_scores import class_scores
from norton_plugin.zoo.preprocessing import Preprocessing

_LONGEST_NAME = 40  # of a class, which may come from a stranger's artefact


@dataclass(frozen=True)
class Prediction:
    """What a model found in an image.

    Attributes:
        scores: Probability of every class, (classes,), of a classifier; of every object, (N,), of a detector.
        labels: Class of every object, (N,), None of a classifier.
        boxes: (N, 4) as x1, y1, x2, y2 in pixels, None of a classifier.
        masks: (N, H, W) bool, None where the detector makes none.
        keypoints: (N, K, 2) in pixels, None where the detector makes none.
    """

    scores: Tensor
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None
    keypoints: Tensor | None = None

    def above(self, least: float) -> Prediction:
        """Return the same without objects of lower scores."""
        if self.boxes is None:
            return self
        kept = self.scores >= least
        parts = (self.scores, self.labels, self.boxes, self.masks, self.keypoints)
        return Prediction(*(None if part is None else part[kept] for part in parts))  # type: ignore[arg-type]


def picture_of(image: Any, spec: Mapping[str, Any], preprocessing: Preprocessing) -> Tensor:
    """Return an image as a model of a source looks at it, before normalisation.

    Args:
        image: A ``PIL.Image`` of as many channels as the model takes.
        spec: Of the source.
        preprocessing: Of the model.

    Returns:
        uint8 (C, H, W): for detectors the whole image, scaled to fit into the model's size where it is one of mmdet
        (those of torchvision scale by themselves); for others resized and cropped.
    """
    from torchvision.transforms.functional import pil_to_tensor

    if spec["kind"] == "mmdet":
        height, width = preprocessing.input_size[-2:]
        ratio = min(width / image.width, height / image.height)
        return pil_to_tensor(image.resize((max(1, round(ratio * image.width)), max(1, round(ratio * image.height)))))
    if preprocessing.crop_pct == 1.0 and _scales_itself(preprocessing):
        return pil_to_tensor(image)
    from norton_plugin.zoo.transforms import image_transform

    return image_transform(preprocessing)(image)


def _scales_itself(preprocessing: Preprocessing) -> bool:
    """Tell torchvision's detectors, which normalise and scale inside."""
    return set(preprocessing.mean) == {0.0} and set(preprocessing.std) == {1.0}


def predict(model: nn.Module, picture: Tensor, spec: Mapping[str, Any], preprocessing: Preprocessing) -> Prediction:
    """Run a model on one image.

    Args:
        model: In evaluation mode, dense or compressed.
        picture: As of ``picture_of``.
        spec: Of the source.
        preprocessing: Of the model.

    Raises:
        SourceError: Its output is neither scores of classes nor objects.
    """
    with torch.no_grad():
        if spec["kind"] == "mmdet":
            from norton_plugin.zoo.mmdet_prediction import found_by

            return Prediction(*found_by(model, picture))
        if _scales_itself(preprocessing):
            return _of_torchvision(model([picture.float() / 255]))
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        output = model(((picture.float() / 255 - mean) / std)[None])
    expected = "scores of classes, (1, classes), or objects with boxes"
    return Prediction(class_scores(output, of="the model", expected=expected)[0].softmax(0))


def _of_torchvision(output: Any) -> Prediction:
    if not (isinstance(output, list) and output and isinstance(output[0], Mapping) and "boxes" in output[0]):
        raise SourceError(f"the model returns {type(output).__name__}; expected a list of objects with boxes")
    found = output[0]
    masks, points = found.get("masks"), found.get("keypoints")
    return Prediction(
        found["scores"],
        found["labels"],
        found["boxes"],
        None if masks is None else masks[:, 0] > 0.5,
        None if points is None else points[:, :, :2],
    )


def class_names(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a detector's classes (of mmdet), or of a torchvision model's published ones.

    Args:
        spec: What builds the model.

    Returns:
        Names in the order of their numbers; empty where they are unknown, or where the model's own may be others.
    """
    if spec["kind"] == "mmdet":
        return tuple(name[:_LONGEST_NAME] for name in (spec.get("kwargs") or {}).get("classes", ()))
    if spec["kind"] != "torchvision" or (spec.get("kwargs") or {}).get("num_classes") is not None:
        return ()
    from torchvision.models import get_model_weights

    weights = get_model_weights(spec["name"])
    return tuple(weights.DEFAULT.meta.get("categories", ())) if len(weights) else ()
