"""What a detector of mmdet is run by: for a trace of its channels, on images, and for a file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from mmdet.models.detectors import DetectionTransformer, TwoStageDetector
from torch import Tensor, nn

from norton_plugin.zoo.detector_cost import image_samples, run_tensor_mode
from norton_plugin.zoo.fixed_regions import COMPARED_REGIONS
from norton_plugin.zoo.region_heads import Trace, parts_on_regions, region_parts, regions_of, run_on_pyramid
from norton_plugin.zoo.visible_operators import visible_operators


def exported_part(model: nn.Module) -> tuple[Trace, str]:
    """Return what tools for deployment expect in a file: tensors up to the heads, without boxes and suppression.

    Args:
        model: A detector.

    Returns:
        A function of the model and normalised images (B, 3, H, W), and what it covers in words.
    """
    if not isinstance(model, TwoStageDetector):
        return _up_to_the_head, "backbone, neck and the tensors of the head (mode 'tensor')"
    if getattr(model, "with_rpn", False):
        return _pyramid_and_rpn, "backbone, neck and the tensors of the RPN head, without the RoI heads"
    return features, "backbone and neck, without the RoI heads"


def _up_to_the_head(model: nn.Module, example: Tensor) -> Any:
    if isinstance(model, DetectionTransformer):  # its masks are made for images of one size, from their descriptions
        return run_tensor_mode(model, example)
    return model(example, mode="tensor")  # without descriptions of the images, so that the batch can stay open


def _pyramid_and_rpn(model: nn.Module, example: Tensor) -> Any:
    pyramid = features(model, example)
    return [pyramid, run_on_pyramid("rpn_head", model, pyramid)]


def features(model: nn.Module, example: Tensor) -> Any:
    """Run backbone and neck alone."""
    with visible_operators():
        return model.extract_feat(example)  # type: ignore[operator]


def with_proposals(model: nn.Module, images: Tensor) -> list[Any]:
    """Run a two-stage detector on images, its heads on the regions that it proposes itself.

    Args:
        model: A two-stage detector with a region proposal network.
        images: Normalised images (B, 3, H, W).

    Returns:
        Its pyramid, what the RPN says of it, and what the heads say of the proposals.
    """
    own: Any = model
    samples = image_samples(tuple(images.shape[-2:]), images)
    with visible_operators():
        pyramid = features(model, images)
        proposals = own.rpn_head.predict(pyramid, samples, rescale=False)
        return [pyramid, own.rpn_head(pyramid), own.roi_head.forward(pyramid, proposals, samples)]


class PartByPart:
    """Runs the pyramid, then the given parts on it or on stand-ins of regions.

    Args:
        parts: Names of what follows the pyramid.
        counted: What MACs are counted on by ``compress``; None for the parts themselves.
        regions: On how many regions, in words.
        calibrated: What runs on images that ``compress`` calibrates on; None for the parts themselves.
    """

    def __init__(
        self,
        parts: tuple[str, ...],
        counted: Trace | None = None,
        regions: str = "",
        calibrated: Trace | None = None,
    ) -> None:
        self.parts = parts
        self.counted = counted or self
        self.regions = regions
        self.calibrated = calibrated or self
        # What heads say of proposals is not comparable: each model makes its own.
        self.distilled = _pyramid_and_rpn if calibrated is with_proposals else self.calibrated

    def __call__(self, model: nn.Module, example: Tensor) -> Any:
        """Return the pyramid and what each part returns."""
        with visible_operators():
            pyramid = features(model, example)
            runs = dict(parts_of(model))
            return [pyramid, *(runs[part](model, pyramid) for part in self.parts)]


class ThroughPooling(PartByPart):
    """Runs the pyramid, then all that reads it, the RoI head on fixed regions: channels of the pyramid can go.

    Two models are compared by what they say of a few such regions.
    """

    def __init__(self, *facts: Any) -> None:
        super().__init__(*facts)
        self.distilled = partial(self._on_regions, COMPARED_REGIONS)

    def __call__(self, model: nn.Module, example: Tensor) -> Any:
        """Return what each part returns."""
        return self._on_regions(regions_of(model), model, example)

    def _on_regions(self, count: int, model: nn.Module, images: Tensor) -> list[Any]:
        with visible_operators():
            pyramid = features(model, images)
            runs = parts_on_regions(model, count)
            return [runs[part](model, pyramid) for part in self.parts]


def parts_of(model: nn.Module) -> Iterator[tuple[str, Trace]]:
    """Parts that follow the neck, each a function of the model and its features."""
    if isinstance(model, TwoStageDetector):
        yield from region_parts(model)
        return
    for name, _ in model.named_children():
        if name.endswith("_head"):
            yield name, partial(run_on_pyramid, name)
