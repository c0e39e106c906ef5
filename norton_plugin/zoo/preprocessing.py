"""What a model expects of its input images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from norton_plugin.errors import SourceError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Size and normalisation of one input image.

    Attributes:
        input_size: (C, H, W) in pixels; (C, T, H, W) for video models.
        mean: Per-channel mean of images scaled to [0, 1].
        std: Per-channel standard deviation of images scaled to [0, 1].
        interpolation: Name of the resize filter: ``bilinear``, ``bicubic`` or ``nearest``.
        crop_pct: Share of the resized image, in (0, 1], that the centre crop keeps.
    """

    input_size: tuple[int, ...] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    crop_pct: float = 0.875


def input_facts(preprocessing: Preprocessing, inputs: int) -> dict[str, Any]:
    """Describe what a model takes, JSON-able: what an artefact keeps of it under ``extra``.

    Args:
        preprocessing: Size and normalisation of its images.
        inputs: Number of input tensors.
    """
    return {"preprocessing": asdict(preprocessing), "inputs": inputs}


def resolve_input_size(asked: int | Sequence[int] | None, default: Sequence[int]) -> tuple[int, ...]:
    """Complete a size given by the user from the model's own size.

    Args:
        asked: ``None``, one side in pixels, (H, W), or the full shape without the batch axis.
        default: The model's own shape without the batch axis; at least (C, H, W).

    Returns:
        The full shape without the batch axis.

    Raises:
        SourceError: The size has the wrong number of axes or an entry below one.
    """
    if asked is None:
        return tuple(default)
    sides = (asked, asked) if isinstance(asked, int) else tuple(asked)
    size = (*default[:-2], *sides) if len(sides) == 2 else sides
    if len(size) != len(default) or any(not isinstance(side, int) or side < 1 for side in size):
        raise SourceError(
            f"input size {asked!r} does not fit: expected one side, (height, width) or a shape like "
            f"{tuple(default)}, all positive integers"
        )
    return size
