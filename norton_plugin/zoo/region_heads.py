"""The heads of two-stage detectors, run on fixed regions in the place of those that the RPN proposes.

A RoI head that runs whole reads regions that are pooled from the pyramid, as ever. Parts of one run on stand-ins of
regions, which hold the channels of the pyramid: it is then an output of what is traced, and keeps its width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import EmbeddingRPNHead
from mmdet.models.roi_heads import CascadeRoIHead
from mmengine.structures import InstanceData
from torch import Tensor, nn

from norton_plugin.zoo.detector_cost import constant_boxes, detections_of, image_samples, proposals_of
from norton_plugin.zoo.fixed_regions import regions_of_levels

Trace = Callable[[nn.Module, Any], Any]
# Name of the part that is all of the RoI head, and how many stand-ins of regions it is traced on.
WHOLE_HEAD = "roi_head"
_REGIONS = 16
# Side of a box in pixels from which on the second level is read, if the extractor does not say.
_FINEST_SCALE = 56


def region_parts(model: nn.Module) -> Iterator[tuple[str, Trace]]:
    """Yield the parts of a two-stage detector that follow its neck, each a function of the model and its pyramid."""
    if getattr(model, "with_rpn", False):
        yield "rpn_head", partial(run_on_pyramid, "rpn_head")
    if getattr(model, "semantic_head", None) is not None:
        yield "semantic_head", partial(run_on_pyramid, "semantic_head")
    roi_head = getattr(model, "roi_head", None)
    for name in ("semantic_head", "glbctx_head"):
        if getattr(roi_head, name, None) is not None:
            yield f"roi_head.{name}", partial(run_on_pyramid, f"roi_head.{name}")
    for kind, count in (("bbox", proposals_of(model)), ("mask", detections_of(model))):
        heads = _as_list(getattr(roi_head, f"{kind}_head", None))
        extractors = _extractors(roi_head, kind)
        if kind == "mask" and getattr(roi_head, "mask_info_flow", False):
            yield "roi_head.mask_head", _run_mask_flow
            continue
        single = not isinstance(getattr(roi_head, f"{kind}_head", None), nn.ModuleList)
        for index in range(min(len(heads), len(extractors))):
            name = f"roi_head.{kind}_head" + ("" if single else f".{index}")
            yield name, partial(_run_roi_head, kind, index, count)
    if getattr(roi_head, "point_head", None) is not None:
        yield "roi_head.point_head", _run_point_head
    yield WHOLE_HEAD, _run_whole_head


def parts_on_regions(model: nn.Module, count: int) -> dict[str, Trace]:
    """Return what ``region_parts`` yields, with the RoI head as a whole on regions that are pooled from the pyramid.

    Args:
        model: A two-stage detector for which ``pools_visibly``.
        count: Regions in each image.
    """
    parts = {name: run for name, run in region_parts(model) if not name.startswith(WHOLE_HEAD)}
    return {**parts, WHOLE_HEAD: partial(run_on_regions, count)}


def run_on_pyramid(name: str, model: nn.Module, pyramid: Any) -> Any:
    """Run a head that reads the pyramid alone."""
    return model.get_submodule(name)(pyramid)


def _run_roi_head(kind: str, index: int, count: int, model: nn.Module, pyramid: Any) -> Any:
    """Run one head on stand-ins of regions."""
    roi_head: Any = model.roi_head
    head = _as_list(getattr(roi_head, f"{kind}_head"))[index]
    pooled = _pooled(model, _extractors(roi_head, kind)[index], count, pyramid)
    if getattr(roi_head, "with_shared_head", False):
        pooled = roi_head.shared_head(pooled)
        if getattr(head, "with_avg_pool", None) is None and kind == "bbox":
            return [pooled]
        return [pooled, head(pooled)]
    return head(pooled)


def _run_mask_flow(model: nn.Module, pyramid: Any) -> list[Any]:
    """Run the mask heads of a hybrid task cascade, each of which reads the features of the one before."""
    roi_head: Any = model.roi_head
    pooled, feature, predictions = (
        _pooled(model, _extractors(roi_head, "mask")[-1], detections_of(model), pyramid),
        None,
        [],
    )
    for head in roi_head.mask_head:
        prediction, feature = head(pooled, feature)
        predictions.append(prediction)
    return predictions


def _run_point_head(model: nn.Module, pyramid: Any) -> Any:
    """Run the head that refines masks point by point, on masks that the mask head makes of them.

    The points are the same in every run: where a mask is least certain, two models that compute nearly the same differ.
    """
    roi_head: Any = model.roi_head
    size = _image_size(model, pyramid)
    boxes = constant_boxes(_REGIONS, size, like=pyramid[0])
    regions = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
    with _stand_ins(model):
        masks = roi_head._mask_forward(pyramid, regions)["mask_preds"]
    classes = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    points = partial(_same_points, roi_head.point_head.get_roi_rel_points_test)
    with patch.object(roi_head.point_head, "get_roi_rel_points_test", points):
        return [masks, roi_head._mask_point_forward_test(pyramid, regions, classes, masks)]


def _same_points(own: Callable[..., Any], masks: Tensor, *arguments: Any, **options: Any) -> Any:
    """Take the place of ``get_roi_rel_points_test``: the least certain points of a mask that is always the same."""
    shape = [int(size) for size in masks.shape]
    constant = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return own(constant.to(device=masks.device, dtype=masks.dtype), *arguments, **options)


def _run_whole_head(model: nn.Module, pyramid: Any) -> Any:
    """Run the RoI head by its own mode ``tensor`` on stand-ins: its parts may need more, such as one another."""
    boxes = constant_boxes(_REGIONS, _image_size(model, pyramid), like=pyramid[0])
    with _stand_ins(model):
        return _run_tensor_mode(model, pyramid, boxes)


def run_on_regions(count: int, model: nn.Module, pyramid: Any) -> list[Any]:
    """Run the RoI head by its own mode ``tensor`` on regions that are pooled from all levels of the pyramid.

    A cascade hands the same boxes to all of its stages: refined ones would follow choices among values.

    Args:
        count: Of regions in each image.
        model: A two-stage detector for which ``pools_visibly``.
        pyramid: Of B images.

    Returns:
        What the RoI head returns, and what the stages of a cascade say of how the boxes are to be refined.
    """
    boxes = _boxes_of_all_levels(model, count, pyramid)
    refining: list[Any] = []
    with ExitStack() as stack:
        for head in model.roi_head.modules():  # type: ignore[union-attr]
            if hasattr(head, "regress_by_class"):
                stack.enter_context(patch.object(head, "regress_by_class", partial(_unchanged, refining)))
        return [_run_tensor_mode(model, pyramid, boxes), refining]


def regions_of(model: nn.Module) -> int:
    """Return how many regions of each image a RoI head is to be traced on: about as many as it reads in use.

    In a cascade the mask heads read all that the box heads read, in the mode ``tensor`` alone: they tell the number.
    It is odd, since a trace takes a number of regions that equals a width, mostly an even number, for that width.

    Args:
        model: A two-stage detector.
    """
    roi_head: Any = model.roi_head
    masks = isinstance(roi_head, CascadeRoIHead) and roi_head.with_mask
    return (detections_of(model) if masks else proposals_of(model)) | 1


def _unchanged(refining: list[Any], boxes: Tensor, _: Tensor, prediction: Any, *__: Any, **___: Any) -> Tensor:
    """Take the place of ``regress_by_class``: keep what a stage says of the boxes, and hand them on as they are."""
    refining.append(prediction)
    return boxes


def roi_layers_of(roi_head: nn.Module) -> list[nn.Module]:
    """Return the layers that pool regions, one for each level of each extractor."""
    return [layer for module in roi_head.modules() for layer in getattr(module, "roi_layers", ())]


def pools_visibly(roi_head: nn.Module) -> bool:
    """Tell whether a trace can follow the region pooling of a RoI head (``visible_operators``).

    Args:
        roi_head: Of a two-stage detector.
    """
    return all(isinstance(layer, RoIAlign) and layer.pool_mode == "avg" for layer in roi_layers_of(roi_head))


def _run_tensor_mode(model: nn.Module, pyramid: Any, boxes: Tensor) -> Any:
    roi_head: Any = model.roi_head
    samples = image_samples(_image_size(model, pyramid), pyramid[0])
    rpn_head: Any = model.rpn_head if getattr(model, "with_rpn", False) else None
    if isinstance(rpn_head, EmbeddingRPNHead):  # its proposals are parameters, of a fixed number
        proposals = rpn_head.predict(pyramid, samples)
    else:
        proposals = [InstanceData(bboxes=boxes, scores=boxes.new_ones(len(boxes))) for _ in samples]
    return roi_head.forward(pyramid, proposals, samples)


def _boxes_of_all_levels(model: nn.Module, count: int, pyramid: Any) -> Tensor:
    """Return boxes (count, 4) that begin in the image, every level of the pyramid in turn read by one."""
    extractor: Any = _extractors(model.roi_head, "bbox")[0]
    finest = getattr(extractor, "finest_scale", _FINEST_SCALE)
    begins = [finest * 2.0**level for level in range(len(extractor.roi_layers))]
    return regions_of_levels(count, _image_size(model, pyramid), begins, like=pyramid[0])


def _image_size(model: Any, pyramid: Any) -> tuple[int, int]:
    """Return (H, W) of the image that a pyramid was made of."""
    extractor: Any = _extractors(model.roi_head, "bbox")[0]
    height, width = (int(size) * extractor.featmap_strides[0] for size in pyramid[0].shape[-2:])
    return height, width


@contextmanager
def _stand_ins(model: nn.Module) -> Iterator[None]:
    """While entered, region pooling returns stand-ins with the channels of the map that it pools."""
    with ExitStack() as stack:
        for extractor in model.roi_head.modules():  # type: ignore[union-attr]
            if hasattr(extractor, "roi_layers"):
                stack.enter_context(patch.object(extractor, "forward", partial(_extracted, model, extractor)))
        yield


def _extracted(
    model: nn.Module, extractor: Any, levels: Sequence[Tensor], regions: Tensor, roi_scale_factor: Any = None
) -> Tensor:
    """Take the place of an extractor's forward pass; layers of its own run."""
    own = getattr(extractor, "with_pre", False), getattr(extractor, "with_post", False)
    pooled = _pooled(model, extractor, len(regions), levels)
    if any(own) and extractor.aggregation == "sum":
        pooled = sum((extractor.pre_module(pooled) if own[0] else pooled) for _ in levels)  # type: ignore[assignment]
        return extractor.post_module(pooled) if own[1] else pooled
    return pooled


def _pooled(model: nn.Module, extractor: Any, count: int, pyramid: Any) -> Tensor:
    """Return (count, C, h, w): the whole of a level, pooled, by a factor of its own for each region.

    So the regions have the channels of the pyramid. Where they do not hold as many, they are constant.
    """
    level = pyramid[0]
    size = extractor.roi_layers[0].output_size
    size = size if isinstance(size, tuple) else (size, size)
    generator = torch.Generator().manual_seed(0)
    if level.shape[1] == extractor.out_channels:
        factors = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
        return F.adaptive_avg_pool2d(level[:1], size) * factors.to(level)
    pooled = torch.rand(1, extractor.out_channels, *size, generator=generator)
    pooled = pooled.to(next(model.parameters())).repeat(count, 1, 1, 1)
    # A trace must take the regions for data: what is made of constants alone is a weight.
    return pooled + 0 * level.mean()


def _extractors(roi_head: Any, kind: str) -> list[nn.Module]:
    own = _as_list(getattr(roi_head, f"{kind}_roi_extractor", None))
    return own or _as_list(getattr(roi_head, "bbox_roi_extractor", None))


def _as_list(modules: Any) -> list[nn.Module]:
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
