"""How detectors of mmdet are traced: every part that can be, cut where tracing would fail or explode.

Two-stage detectors are cut at RoI pooling. Traced end to end, the flattened RoI features (256 x 7 x 7 channels on
five pyramid levels) take over 20 GiB in the dependency graph. Instead one pass yields the pyramid and the RPN's
outputs, and the RoI heads run on constant features: the pyramid's channels are outputs, hence keep their width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.detectors.base import BaseDetector
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Trace = Callable[[nn.Module, Any], Any]
# Regions that the RoI heads are run on: mmdet's usual numbers of proposals and of detections per image.
BOXES, MASKS = 1000, 100


def is_detector(model: nn.Module) -> bool:
    """Whether a model is one of mmdet's detectors."""
    return isinstance(model, BaseDetector)


def trace_of(model: nn.Module, example: Tensor) -> tuple[Trace, str]:
    """The function that runs all traceable parts of a detector, and what it covers in words.

    Parts that cannot be run by themselves are left out: their inputs are outputs of the trace and keep their width,
    and their convolutions can still be decomposed.

    Args:
        model: A detector.
        example: Normalised image (1, 3, H, W), to find out what runs.
    """
    if isinstance(model, TwoStageDetector):
        parts = [part for part, run in _two_stage_parts(model) if _runs(model, part, run, example)]
        return _TwoStage(tuple(parts)), ", ".join(["backbone and neck", *parts])
    has_head = isinstance(model, SingleStageDetector) and getattr(model, "bbox_head", None) is not None
    if has_head and _runs(model, "bbox_head", _single_stage, example):
        return _single_stage, "backbone, neck and bbox_head"
    return features, "backbone and neck"


def features(model: nn.Module, example: Tensor) -> Any:
    """Runs backbone and neck alone: what is left where the dependencies of a head cannot be traced."""
    return model.extract_feat(example)  # type: ignore[operator]


def _single_stage(model: nn.Module, example: Tensor) -> Any:
    return model(example, None, mode="tensor")


class _TwoStage:
    """Runs the pyramid, then the given parts on it or on constant regions."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self.parts = parts

    def __call__(self, model: nn.Module, example: Tensor) -> Any:
        pyramid = features(model, example)
        runs = dict(_two_stage_parts(model))
        return [pyramid, *(runs[part](model, pyramid) for part in self.parts)]


def _two_stage_parts(model: nn.Module) -> Iterator[tuple[str, Trace]]:
    """Parts that follow the neck, each a function of the model and its features."""
    if getattr(model, "with_rpn", False):
        yield "rpn_head", _run_rpn
    roi_head = getattr(model, "roi_head", None)
    for kind, count in (("bbox", BOXES), ("mask", MASKS)):
        heads = _as_list(getattr(roi_head, f"{kind}_head", None))
        extractors = _as_list(getattr(roi_head, f"{kind}_roi_extractor", None))
        extractors = extractors or _as_list(getattr(roi_head, "bbox_roi_extractor", None))
        single = not isinstance(getattr(roi_head, f"{kind}_head", None), nn.ModuleList)
        for index in range(min(len(heads), len(extractors))):
            name = f"roi_head.{kind}_head" + ("" if single else f".{index}")
            yield name, _RoIPart(kind, index, count)


def _run_rpn(model: nn.Module, pyramid: Any) -> Any:
    return model.rpn_head(pyramid)  # type: ignore[operator]


class _RoIPart:
    """One head on constant pooled features: no gradient leads from its input to the pyramid."""

    def __init__(self, kind: str, index: int, count: int) -> None:
        self.kind, self.index, self.count = kind, index, count

    def __call__(self, model: nn.Module, pyramid: Any) -> Any:
        roi_head: Any = model.roi_head
        heads = _as_list(getattr(roi_head, f"{self.kind}_head"))
        extractors = _as_list(getattr(roi_head, f"{self.kind}_roi_extractor", None))
        extractor: Any = (extractors or _as_list(roi_head.bbox_roi_extractor))[self.index]
        size = extractor.roi_layers[0].output_size
        size = size if isinstance(size, tuple) else (size, size)
        like = next(model.parameters())
        generator = torch.Generator().manual_seed(0)
        pooled = torch.rand(1, extractor.out_channels, *size, generator=generator)
        pooled = pooled.to(like).repeat(self.count, 1, 1, 1)
        # The regions are constant, but a trace must take them for data: what is made of constants alone is a weight.
        pooled = pooled + 0 * pyramid[0].mean()
        if getattr(roi_head, "with_shared_head", False):
            pooled = roi_head.shared_head(pooled)
            if getattr(heads[self.index], "with_avg_pool", None) is None and self.kind == "bbox":
                return [pooled]
            return [pooled, heads[self.index](pooled)]
        return heads[self.index](pooled)


def _as_list(modules: Any) -> list[nn.Module]:
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


@torch.no_grad()
def _runs(model: nn.Module, part: str, run: Trace, example: Tensor) -> bool:
    """Whether a part can be run by itself; the reason is logged where it cannot."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        whole = run is _single_stage
        run(model, example if whole else model.extract_feat(example))  # type: ignore[operator]
    except Exception as error:
        logger.info(
            "%s is not traced (%s: %s): its layers are decomposed, not pruned", part, type(error).__name__, error
        )
        return False
    finally:
        for module, mode in modes:
            module.training = mode
    return True
