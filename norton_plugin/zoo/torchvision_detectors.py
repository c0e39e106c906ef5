"""Two-stage detectors of torchvision, run on fixed regions in the place of those that they propose.

What they propose and find follows choices among values: in the noise of an example a trained one finds nothing, so that
its heads for masks and keypoints would get nothing to compute, and all that they read would keep its width.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from norton_plugin.errors import message_of

logger = logging.getLogger(__name__)

# Regions of each image by which two models are compared. An odd number is the width of no layer, for which a trace
# would take it.
_COMPARED = 33
# Regions of a level have the side where it begins, times this factor, so that they lie inside it.
_WITHIN_LEVEL = 1.2
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
        idle = _idle_layers(model, trace, example)
    except Exception as error:
        logger.info("heads do not run on fixed regions (%s: %s)", type(error).__name__, message_of(error))
        return None
    if idle:
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
        found = cls(regions | 1, objects | 1)
        found.counted = cls(regions, objects)
        found.distilled = cls(_COMPARED, _COMPARED)
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
            regions = [regions_of_all_levels(count, levels, size) for size in pictures.image_sizes]
            said.append(predictor(head(pool(features, regions, pictures.image_sizes))))
        return said


def regions_of_all_levels(count: int, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return boxes that begin in an image, every level in turn read by one, the same every time.

    Args:
        count: Of boxes.
        levels: Maps (B, C, h, w) that regions are pooled from.
        size: (H, W) of the image in pixels.

    Returns:
        (count, 4): x1, y1, x2, y2 in pixels.
    """
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]]) / 2
    numbers = torch.tensor([round(math.log2(size[0] / level.shape[-2])) for level in levels])
    own = numbers[torch.arange(count) % len(numbers)]
    sides = _WITHIN_LEVEL * _CANONICAL_SIDE * 2.0 ** (own - _CANONICAL_LEVEL)
    return torch.cat([corners, corners + sides[:, None]], 1).to(levels[0])


def _is_usual(model: GeneralizedRCNN) -> bool:
    """Tell whether a detector runs as torchvision's do: one of the user's own may read more than what is run here."""
    parts = ((model, GeneralizedRCNN), (model.rpn, RegionProposalNetwork), (model.roi_heads, RoIHeads))
    return all(isinstance(part, kind) and type(part).forward is kind.forward for part, kind in parts)


def _idle_layers(model: nn.Module, trace: OnRegions, example: Tensor) -> list[str]:
    """Return the names of the layers with a weight that do not run; the mode of the model stays."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)}
    called: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(lambda own, _: called.add(own)) for module in layers.values()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            trace.distilled(model, example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return [name for name, module in layers.items() if module not in called]
