"""Two-stage detectors of torchvision, run on fixed regions in the place of those that they propose.

What they propose and find follows choices among values: in the noise of an example a trained one finds nothing, so that
its heads for masks and keypoints would get nothing to compute, and all that they read would keep its width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_plugin.errors import message_of
from norton_plugin.zoo.fixed_regions import COMPARED_REGIONS, regions_of_levels
from norton_plugin.zoo.what_runs import called, evaluating, idle_layers

logger = logging.getLogger(__name__)

_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4  # of MultiScaleRoIAlign


def is_detector(model: nn.Module) -> bool:
    """Tell whether a model is one of torchvision's detectors."""
    return isinstance(getattr(model, "transform", None), GeneralizedRCNNTransform)


def found_in(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """Run a detector on images (B, 3, H, W) in [0, 1], up to its boxes."""
    found: list[dict[str, Tensor]] = model(list(images))
    return found


def trace_of(model: nn.Module, example: Tensor) -> tuple[OnRegions, str] | None:
    """Return what runs all layers of a two-stage detector, and what it covers in words.

    Args:
        model: Any model.
        example: Images (B, 3, H, W) in [0, 1], to find out whether it does.

    Returns:
        None for other models, and where a layer would not run, such as that of a head of the user's own: a plain call
        runs those.
    """
    if not isinstance(model, GeneralizedRCNN) or not _is_usual(model):
        return None
    trace = OnRegions.of(model)
    try:
        with evaluating(model), called(model) as ran:
            trace.distilled(model, example)
    except Exception as error:
        logger.info("heads do not run on fixed regions (%s: %s)", type(error).__name__, message_of(error))
        return None
    if idle := idle_layers(model, ran):
        logger.info("%s does not run on fixed regions: the detector is run as it is", idle[0])
        return None
    return trace, "the whole detector, its heads on fixed regions"


class OnRegions:
    """Runs a two-stage detector with its heads on fixed regions, pooled from all levels.

    Args:
        regions: Of each image, for the box head; less where there are fewer anchors.
        objects: Of each image, for heads of masks and keypoints.
    """

    def __init__(self, regions: int, objects: int) -> None:
        self.regions, self.objects = regions, objects
        self.counted: OnRegions = self
        self.calibrated: Callable[[nn.Module, Tensor], Any] = found_in
        self.distilled: OnRegions = self

    @classmethod
    def of(cls, model: Any) -> OnRegions:
        """Return one for about as many regions as a detector reads in use."""
        regions, objects = model.rpn._post_nms_top_n["testing"], model.roi_heads.detections_per_img
        found = cls(regions | 1, objects | 1)  # odd, as those that models are compared by
        found.counted = cls(regions, objects)
        found.distilled = cls(COMPARED_REGIONS, COMPARED_REGIONS)
        return found

    def __call__(self, model: nn.Module, images: Tensor) -> list[Any]:
        """Return what the RPN says of images (B, 3, H, W), and what every head says of the regions."""
        own: Any = model
        pictures, _ = own.transform(list(images))
        features = own.backbone(pictures.tensors)
        features = {"0": features} if isinstance(features, Tensor) else features
        said = [own.rpn.head(list(features.values()))]
        anchors = sum(scores[0].numel() for scores in said[0][0])
        for kind, count in (("box", min(self.regions, anchors)), ("mask", self.objects), ("keypoint", self.objects)):
            pool, head, predictor = (
                getattr(own.roi_heads, f"{kind}_{part}", None) for part in ("roi_pool", "head", "predictor")
            )
            if pool is None or head is None or predictor is None:
                continue
            levels = [level for name, level in features.items() if name in getattr(pool, "featmap_names", features)]
            regions = [
                regions_of_levels(count, size, level_begins(levels, size[0]), like=levels[0])
                for size in pictures.image_sizes
            ]
            said.append(predictor(head(pool(features, regions, pictures.image_sizes))))
        return said


def level_begins(levels: Sequence[Tensor], height: int) -> list[float]:
    """Return the sides of boxes in pixels from which on MultiScaleRoIAlign reads each of the levels (B, C, h, w).

    Args:
        levels: That regions are pooled from.
        height: Of the image in pixels.
    """
    numbers = [round(math.log2(height / level.shape[-2])) for level in levels]
    return [_CANONICAL_SIDE * 2.0 ** (number - _CANONICAL_LEVEL) for number in numbers]


def _is_usual(model: GeneralizedRCNN) -> bool:
    """Tell whether a detector runs as torchvision's do: one of the user's own may read more than what is run here."""
    parts = ((model, GeneralizedRCNN), (model.rpn, RegionProposalNetwork), (model.roi_heads, RoIHeads))
    return all(isinstance(part, kind) and type(part).forward is kind.forward for part, kind in parts)
