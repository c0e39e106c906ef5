"""Two-stage detectors of random weights that all look at the same regions and find the same objects.

What random weights propose is chance: one model proposes 1000 regions of 30 pixels and finds 100 objects, another
550 that span the image, and none. Here all that a detector runs to propose and to find is run, and then replaced by the
same 1000 regions, of 16 to 512 pixels like the objects of COCO, and the same 100 objects, the most that it may find.
What torchvision's detectors found is added zero times, so that a file of one computes it, too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

REGIONS, OBJECTS = 1000, 100
_SMALLEST, _LARGEST = 16.0, 512.0


def same_regions_(model: nn.Module) -> None:
    """Let a detector of torchvision or mmdet go on with the same regions and objects as any other, in place.

    Args:
        model: One of two stages; anything else is left as it is.
    """
    if hasattr(model, "rpn") and hasattr(model, "roi_heads"):
        _replace_(model.rpn, filter_proposals=_torchvision_regions)
        _replace_(model.roi_heads, postprocess_detections=_torchvision_objects)
    elif hasattr(model, "rpn_head") and hasattr(model, "roi_head"):
        _replace_(model.rpn_head, predict=_mmdet_regions)
        _replace_(model.roi_head, predict_bbox=_mmdet_objects)


def _nothing(found: Tensor) -> Tensor:
    """Return 0, of what was found, which is finite."""
    return 0 * found.sum()


@cache
def boxes_in(height: int, width: int, count: int) -> Tensor:
    """Draw boxes (count, 4) as (x1, y1, x2, y2) in pixels: sides spread evenly on a logarithmic scale."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(count, 4, generator=generator)
    limit = torch.tensor([width, height], dtype=torch.float32)
    sides = torch.minimum(_SMALLEST * (_LARGEST / _SMALLEST) ** draws[:, :2], limit)
    corner = draws[:, 2:] * (limit - sides)
    return torch.cat([corner, corner + sides], 1)


def _replace_(part: Any, **methods: Any) -> None:
    """Derive a class of its own for a part, which copies of the model have too."""
    kind = type(part)
    part.__class__ = type(kind.__name__, (kind,), {name: method(kind) for name, method in methods.items()})


def _torchvision_regions(kind: type) -> Any:
    def filter_proposals(
        self: Any, proposals: Any, objectness: Any, shapes: Any, counts: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        found = kind.filter_proposals(self, proposals, objectness, shapes, counts)  # type: ignore[attr-defined]
        regions = [boxes_in(*shape, REGIONS) + _nothing(own) for shape, own in zip(shapes, found[0], strict=True)]
        return regions, [torch.ones(REGIONS) for _ in shapes]

    return filter_proposals


def _torchvision_objects(kind: type) -> Any:
    def postprocess_detections(
        self: Any, logits: Any, regression: Any, proposals: Any, shapes: Any
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        found = kind.postprocess_detections(  # type: ignore[attr-defined]
            self, logits, regression, proposals, shapes
        )
        labels = torch.ones(OBJECTS, dtype=torch.int64)
        objects = [boxes[:OBJECTS] + _nothing(own) for boxes, own in zip(proposals, found[0], strict=True)]
        scores = [labels.float() + _nothing(own) for own in found[1]]
        return objects, scores, [labels for _ in shapes]

    return postprocess_detections


def _mmdet_regions(kind: type) -> Any:
    def predict(self: Any, x: Any, batch_data_samples: Any, rescale: bool = False) -> Any:
        kind.predict(self, x, batch_data_samples, rescale=rescale)  # type: ignore[attr-defined]
        shapes = [sample.metainfo["img_shape"] for sample in batch_data_samples]
        return [_instances(boxes_in(*shape[:2], REGIONS)) for shape in shapes]

    return predict


def _mmdet_objects(kind: type) -> Any:
    def predict_bbox(self: Any, x: Any, metas: Any, regions: Any, *arguments: Any, **options: Any) -> Any:
        kind.predict_bbox(self, x, metas, regions, *arguments, **options)  # type: ignore[attr-defined]
        return [_instances(own.bboxes[:OBJECTS]) for own in regions]

    return predict_bbox


def _instances(boxes: Tensor) -> Any:
    from mmengine.structures import InstanceData

    return InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)), labels=torch.zeros(len(boxes), dtype=torch.int64))
