"""What a model found, drawn into the image: boxes, masks and keypoints, or the five best classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from norton_plugin.errors import MissingExtraError
from norton_plugin.zoo.prediction import Prediction

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b", "#bcbd22")
_BEST = 5
_LEAST_SIDE = 160  # pixels; smaller images are drawn enlarged
_COUNTED = 3  # classes named below a picture
_LETTER = (6, 11)  # pixels of one in a label, width and height


def draw(picture: Tensor, found: Prediction, names: Sequence[str] = ()) -> tuple[Any, str]:
    """Draw a prediction.

    Args:
        picture: uint8 (C, H, W), of one or three channels.
        found: What to draw, already without objects of low scores.
        names: Of the classes; numbers where they are unknown.

    Returns:
        A ``PIL.Image`` in RGB, and what belongs below it.

    Raises:
        MissingExtraError: torchvision or Pillow is not installed.
    """
    try:
        from PIL import Image
        from torchvision.transforms.functional import to_pil_image
    except ImportError as error:
        raise MissingExtraError(f"{error.name} is not installed; run: pip install 'norton-plugin[cam]'") from error
    picture = picture.expand(3, -1, -1) if len(picture) == 1 else picture
    if found.boxes is None:
        image = to_pil_image(picture)
        factor = -(-_LEAST_SIDE // min(image.size))
        large = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        return large, _best(found.scores, names)
    return to_pil_image(_objects(picture, found, names)), _counts(found, names)


def _best(scores: Tensor, names: Sequence[str]) -> str:
    best = scores.topk(min(_BEST, len(scores)))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return "\n".join(f"{_name(label, names)}: {100 * value:.0f} %" for value, label in pairs)


def _counts(found: Prediction, names: Sequence[str]) -> str:
    """Say how many objects there are, and of which classes most."""
    labels = [] if found.labels is None else found.labels.tolist()
    kinds = Counter(labels).most_common()
    words = ", ".join(f"{count} {_name(label, names)}" for label, count in kinds[:_COUNTED])
    more = ", ..." if len(kinds) > _COUNTED else ""
    return f"{len(labels)} object{'' if len(labels) == 1 else 's'}" + (f": {words}{more}" if labels else "")


def _objects(picture: Tensor, found: Prediction, names: Sequence[str]) -> Tensor:
    from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

    if found.boxes is None or found.labels is None or not len(found.boxes):
        return picture
    labels = found.labels.tolist()
    colours = [_COLOURS[label % len(_COLOURS)] for label in labels]
    drawn = picture
    if found.masks is not None:
        drawn = draw_segmentation_masks(drawn, found.masks, alpha=0.5, colors=colours)
    if found.keypoints is not None:
        drawn = draw_keypoints(drawn, found.keypoints, colors="#ffdd00", radius=3)
    words = [f"{_name(n, names)}: {s:.2f}" for n, s in zip(labels, found.scores.tolist(), strict=True)]
    # torchvision refuses a box whose sides are in the wrong order or outside, as rounding leaves some
    height, width = picture.shape[-2:]
    boxes = found.boxes.clamp(min=torch.zeros(4), max=torch.tensor([width - 1, height - 1] * 2))
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    shown = _readable(boxes, found.scores, words)
    return draw_bounding_boxes(drawn, boxes, labels=shown, colors=colours, width=2)


def _readable(boxes: Tensor, scores: Tensor, words: Sequence[str]) -> list[str | None]:
    """Return the labels that cover none of a higher score; None for the others, whose colour tells the class."""
    shown: list[str | None] = [None] * len(words)
    taken: list[tuple[float, float, float]] = []  # left, top and right
    for index in scores.argsort(descending=True).tolist():
        left, top = boxes[index, :2].tolist()
        right = left + _LETTER[0] * len(words[index])
        if all(right < other[0] or other[2] < left or abs(top - other[1]) > _LETTER[1] for other in taken):
            taken.append((left, top, right))
            shown[index] = words[index]
    return shown


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else f"class {label}"
