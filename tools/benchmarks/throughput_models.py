"""The models of the throughput table: how far each is compressed, how it is run, and its peer by Torch-Pruning."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from norton_plugin.cost import count_cost
from norton_plugin.modules.running import ForwardFunction
from norton_plugin.recipe import Budget, Decomposition, Scope
from norton_plugin.zoo import exported_part, inference_of, load_source

_TRIALS = 8  # of pruning ratios, each of which halves what is unknown


@dataclass(frozen=True)
class Point:
    """How a model is compressed.

    Attributes:
        name: For the table.
        decomposition: Phase one.
        keep: Share of the channels to keep.
        scope: Which modules to touch; all by default.
        round_to: Channel counts become multiples of this: what ``--round-to auto`` takes with AVX-512.
        budget: What sizes are found for; blocks then run in the forms that are measured to be the fastest.
    """

    name: str
    decomposition: Decomposition
    keep: float
    scope: Scope = field(default_factory=Scope)
    round_to: int = 16
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class Entry:
    """A model of the table.

    Attributes:
        source: As on the command line.
        size: Side of the image in pixels.
        points: How it is compressed.
        batches: Batch sizes to time.
        detector: Whether it is one: timed whole, without a peer.
    """

    source: str
    size: int
    points: tuple[Point, ...]
    batches: tuple[int, ...] = (1, 8)
    detector: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model ready to be compressed and timed.

    Attributes:
        model: In evaluation mode.
        example_inputs: One image.
        forward_fn: Runs what is compressed; None for a plain call.
        timed_fn: Runs the whole in PyTorch.
        export_fn: Runs what is exported.
    """

    model: nn.Module
    example_inputs: Any
    forward_fn: ForwardFunction | None
    timed_fn: ForwardFunction | None
    export_fn: ForwardFunction | None


RANK1, NOTHING = Decomposition(rank=1), Decomposition()
# Sizes are what matters here, not weights: few sweeps.
_AUTO = Decomposition(level="auto", restarts=1, sweeps=3)
HALF_TIME = Point("budget: half of the milliseconds", _AUTO, 1.0, budget=Budget(latency=0.5))
_BODY = Scope(include=("backbone.body.*",))
# The shares of channels meet the complexities of the paper within 2 % in MACs or parameters.
_PAPER = (
    Point("(a) paper, backbone alone, 111.47 G", RANK1, 0.95, _BODY, round_to=8),
    Point("(a) paper, backbone alone, 93.39 G", RANK1, 0.6, _BODY, round_to=8),
)
_HALF = (
    Point("(b) whole, rank 1, keep 0.5", RANK1, 0.5),
    Point("(b) whole, pruned, keep 0.5", NOTHING, 0.5),
)
_WHOLE = (Point("(b) whole, rank 1, keep 0.7", RANK1, 0.7), *_HALF)
MODELS: dict[str, Entry] = {
    "ResNet-50": Entry(
        "timm:resnet50",
        224,
        (
            Point("rank 1, keep 0.9 (2.0 G)", RANK1, 0.9),
            Point("rank 1, keep 0.6, multiples of 8 (0.92 G)", RANK1, 0.6, round_to=8),
            Point("rank 1, keep 0.6, multiples of 16 (0.90 G)", RANK1, 0.6),
            Point("pruned, keep 0.46, multiples of 16 (0.92 G)", NOTHING, 0.46),
            Point("pruned, keep 0.5", NOTHING, 0.5),
            Point("rank 1, keep 0.5", RANK1, 0.5),
            HALF_TIME,
        ),
    ),
    "ResNet-18": Entry(
        "timm:resnet18",
        224,
        (
            Point("rank 1, keep 0.7", RANK1, 0.7),
            Point("pruned, keep 0.5", NOTHING, 0.5),
            HALF_TIME,
        ),
    ),
    "MobileNetV3-large": Entry("timm:mobilenetv3_large_100", 224, (Point("pruned, keep 0.5", NOTHING, 0.5),)),
    "ConvNeXt-tiny": Entry("timm:convnext_tiny", 224, (Point("pruned, keep 0.5", NOTHING, 0.5),)),
    "Faster R-CNN (torchvision)": Entry(
        "torchvision:fasterrcnn_resnet50_fpn", 800, (*_PAPER, *_WHOLE), (1,), detector=True
    ),
    "Mask R-CNN (torchvision)": Entry("torchvision:maskrcnn_resnet50_fpn", 800, _HALF, (1,), detector=True),
    "Keypoint R-CNN (torchvision)": Entry("torchvision:keypointrcnn_resnet50_fpn", 800, _HALF, (1,), detector=True),
    "Faster R-CNN (mmdet)": Entry("mmdet:faster_rcnn/faster-rcnn_r50_fpn_1x_coco", 800, _HALF, (1,), detector=True),
    "Mask R-CNN (mmdet)": Entry("mmdet:mask_rcnn/mask-rcnn_r50_fpn_1x_coco", 800, _HALF, (1,), detector=True),
    "RTMDet-s (mmdet)": Entry("mmdet:rtmdet/rtmdet_s_8xb32-300e_coco", 640, (*_HALF, HALF_TIME), (1,), detector=True),
    "YOLOX-s (mmdet)": Entry("mmdet:yolox/yolox_s_8xb8-300e_coco", 640, (*_HALF, HALF_TIME), (1,), detector=True),
}


def loaded(entry: Entry) -> Loaded:
    """Build a model; a detector of two stages so that random weights give as many regions as trained ones."""
    source = load_source(entry.source, input_size=entry.size)
    model, timed = source.model.eval(), source.forward_fn
    if entry.detector:
        timed = inference_of(source.spec, model)
    if entry.source.startswith("torchvision") and entry.detector:
        model.rpn.nms_thresh = 1.0  # type: ignore[union-attr]
    if entry.source.startswith("mmdet"):
        rpn = (model.test_cfg or {}).get("rpn")  # type: ignore[union-attr, operator]
        if rpn is not None:
            model.rpn_head.test_cfg.nms.iou_threshold = 1.0  # type: ignore[union-attr]
    return Loaded(model, source.example_inputs, source.forward_fn, timed, exported_part(source.spec, model)[0])


def magnitude_pruned(source: Loaded, macs: int) -> nn.Module:
    """Return the model pruned by Torch-Pruning's plain magnitudes to as many MACs, all layers alike.

    Args:
        source: A classifier.
        macs: Of one image.
    """
    low, high, best = 0.0, 0.95, source.model
    for _ in range(_TRIALS):
        ratio = (low + high) / 2
        model = copy.deepcopy(source.model)
        heads = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1000]
        tp.pruner.MagnitudePruner(
            model,
            _tuple(source.example_inputs)[0],
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=heads,
            round_to=8,
        ).step()
        reached = count_cost(model, partial(model, *_tuple(source.example_inputs))).macs
        if reached <= macs:
            high, best = ratio, model
        else:
            low = ratio
    return best.eval()


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


__all__ = ["MODELS", "Entry", "Loaded", "Point", "loaded", "magnitude_pruned"]
