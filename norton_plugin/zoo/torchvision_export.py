"""Detectors of torchvision in a file for another runtime: all of them, up to boxes, labels and scores.

Some of their steps ask Python how many boxes there are, which exporters refuse. Here the same values are computed by
steps that an exporter can follow for any number of boxes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection import roi_heads, transform
from torchvision.ops import boxes as box_operators
from torchvision.ops import nms, poolers, roi_align

from norton_plugin.errors import ExportError

_WORDS = "the whole detector, for one image in [0, 1]: boxes, labels and scores"
_MORE_WORDS = {
    "mask_head": ", and the mask of the inside of each box",
    "keypoint_head": ", and heat maps of the keypoints of each box",
}
# Boxes that a check of a file wants to see, and how often the least score is halved for that.
_BOXES, _HALVINGS = 10, 40
_ALWAYS = ("boxes", "labels", "scores")
_LOCK = threading.RLock()


def parts_in_words(model: nn.Module) -> str:
    """Say what a file of a detector holds."""
    heads = getattr(model, "roi_heads", None)
    more = [words for head, words in _MORE_WORDS.items() if getattr(heads, head, None) is not None]
    return "".join([_WORDS, *more])


class WholeDetector:
    """Runs a detector on one image by steps that exporters can follow.

    Masks and keypoints stay as their heads make them, for the inside of each box: to draw them into the image takes
    maps whose sizes are those of the boxes.

    Args:
        least_score: Of a box, in [0, 1]; None for the model's own.

    Attributes:
        batch: Images that a file of it takes.
        one_size: They have one size: what torchvision computes of it in Python is a constant in a file.
        unordered: Boxes of nearly equal scores may change places from one runtime to another.
    """

    batch = 1
    one_size = True
    unordered = True

    def __init__(self, least_score: float | None = None) -> None:
        self.least_score = least_score

    def __call__(self, model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Find the objects of one image.

        Args:
            model: One of torchvision's detectors, in evaluation mode.
            inputs: One tensor (1, 3, H, W) in [0, 1].

        Returns:
            ``boxes`` (n, 4) in pixels of the image, ``labels`` (n) and ``scores`` (n); with a mask head ``masks``
            (n, 1, 28, 28), with a keypoint head ``heat_maps`` (n, keypoints, 56, 56).

        Raises:
            ExportError: There is another number of images, or the detector returns something else than torchvision's.
        """
        [images] = inputs
        if len(images) != self.batch:
            raise ExportError(
                f"a file of a torchvision detector takes one image at a time, not {len(images)}; leave out the batch"
            )
        with _steps_for_any_number(), self._least_score_of(model):
            found = _of_first(model(list(images)))
        if "keypoints" in found:
            found["heat_maps"] = found.pop("keypoints")
            del found["keypoints_scores"]
        return found

    def own_steps(self, model: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return boxes, labels and scores as torchvision's own steps find them, to compare with.

        Args:
            model: As of a call.
            inputs: Likewise.
        """
        with self._least_score_of(model):
            found = _of_first(model(list(inputs[0])))
        return {name: found[name] for name in _ALWAYS}

    def telling(self, model: nn.Module, inputs: Sequence[Tensor]) -> WholeDetector:
        """Return one that finds boxes in an image of noise, for a check: that no box is found alike says nothing.

        Args:
            model: As of a call.
            inputs: Likewise.

        Returns:
            This one where it finds enough; else one whose least score is halved until there are some boxes.
        """
        enough = min(_BOXES, _scoring(model).detections_per_img)
        found, score = self, float(_scoring(model).score_thresh)
        for _ in range(_HALVINGS):
            if len(found(model, inputs)["boxes"]) >= enough:
                break
            score /= 2
            found = WholeDetector(score)
        return found

    @contextmanager
    def _least_score_of(self, model: nn.Module) -> Iterator[None]:
        if self.least_score is None:
            yield
            return
        with patch.object(_scoring(model), "score_thresh", self.least_score):
            yield


def _of_first(found: Any) -> dict[str, Tensor]:
    """Return what a detector found in the first image.

    Raises:
        ExportError: It is not what torchvision's return.
    """
    first = found[0] if isinstance(found, list) and found else None
    if not isinstance(first, dict) or not set(_ALWAYS) <= set(first):
        raise ExportError(
            f"the detector returns a {type(found).__name__}; expected what torchvision's return, a list with one "
            f"mapping of {', '.join(_ALWAYS)} for each image"
        )
    return dict(first)


def _scoring(model: nn.Module) -> Any:
    """Return the module that knows the least score of a box."""
    return getattr(model, "roi_heads", model)


@contextmanager
def _steps_for_any_number() -> Iterator[None]:
    """While entered, torchvision's detectors compute the same by steps that do not ask how many boxes there are.

    In one thread at a time: the steps are those of the whole process.
    """
    steps: list[tuple[Any, str, Any]] = [
        (box_operators, "batched_nms", _batched_nms),
        (poolers, "_multiscale_roi_align", _pooled),
        (detection_utils.BoxCoder, "decode", _decoded),
        (detection_utils, "_topk_min", _at_most),
        (transform, "paste_masks_in_image", lambda masks, boxes, size: masks),
        (roi_heads, "keypointrcnn_inference", lambda maps, boxes: ([maps], [maps])),
        (transform, "resize_keypoints", lambda maps, size, new_size: maps),
    ]
    with _LOCK, ExitStack() as stack:
        for owner, name, step in steps:
            stack.enter_context(patch.object(owner, name, step))
        yield


def _batched_nms(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Take the place of ``batched_nms``: boxes of every class are moved to where no other class has any.

    Classes lie on a square grid: on a line, those far from its begin would have coordinates of few digits. Two boxes of
    the lowest scores, which overlap with none, come last and are taken away again: a trace expects that two are kept.
    """
    kinds = classes.to(boxes)
    side = (torch.cat([kinds, kinds.new_zeros(1)]).amax(0) + 1).sqrt().ceil()
    row = (kinds / side).floor()
    shift = torch.stack([kinds - row * side, row], 1).repeat(1, 2)
    beyond = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).amax(0) + 1
    outside = boxes.new_tensor([[-4.0, -4.0, -3.0, -3.0], [-2.0, -2.0, -1.0, -1.0]])
    lowest = scores.new_tensor([-1.0, -2.0])
    kept = nms(torch.cat([boxes + shift * beyond, outside]), torch.cat([scores, lowest]), threshold)
    return kept[:-2]


def _pooled(
    levels: Sequence[Tensor],
    boxes: list[Tensor],
    size: Sequence[int],
    sampling_ratio: int,
    scales: Sequence[float],
    level_of: Any,
) -> Tensor:
    """Take the place of ``_multiscale_roi_align``: regions (n, C, h, w), each from the level of its size."""
    regions = poolers._convert_to_roi_format(boxes)
    if len(levels) == 1:
        return roi_align(levels[0], regions, size, scales[0], sampling_ratio)
    own = level_of(boxes)
    pooled = levels[0].new_zeros(regions.shape[0], levels[0].shape[1], *size)
    for index, (level, scale) in enumerate(zip(levels, scales, strict=True)):
        places = torch.where(own == index)[0]
        pooled = pooled.index_put((places,), roi_align(level, regions[places], size, scale, sampling_ratio))
    return pooled


def _decoded(coder: detection_utils.BoxCoder, codes: Tensor, boxes: list[Tensor]) -> Tensor:
    """Take the place of ``BoxCoder.decode``: boxes (n, classes, 4)."""
    reference = torch.cat(boxes)
    count, numbers = codes.shape
    return coder.decode_single(codes, reference).reshape(count, numbers // 4, 4)


def _at_most(tensor: Tensor, limit: int, axis: int) -> Any:
    """Take the place of ``_topk_min``: a limit, or the size of an axis where that is less."""
    return torch.sym_min(limit, tensor.shape[axis])
