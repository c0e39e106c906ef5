"""Transforms from a Pillow image to a uint8 tensor: timm's own where timm is installed, else torchvision's."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from .preprocessing import Preprocessing


def image_transform(preprocessing: Preprocessing, *, training: bool = False) -> Callable[[Image.Image], Tensor]:
    """Build the transform a model was trained with, without its normalisation.

    Args:
        preprocessing: What the model expects.
        training: Random resized crop, flip and colour jitter instead of resize and centre crop.

    Returns:
        A function from an image to uint8 (C, H, W).
    """
    try:
        from timm.data import create_transform
    except ImportError:
        return _torchvision_transform(preprocessing, training)
    channels, height, width = preprocessing.input_size
    transform: Callable[[Image.Image], Tensor] = create_transform(
        (channels, height, width),
        is_training=training,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        normalize=False,
        # colour jitter of timm needs three channels
        color_jitter=0.4 if channels == 3 else 0.0,
    )
    return transform


def _torchvision_transform(preprocessing: Preprocessing, training: bool) -> Callable[[Image.Image], Tensor]:
    from torchvision import transforms as T

    mode: Any = T.InterpolationMode(preprocessing.interpolation)
    sides = list(preprocessing.input_size[-2:])
    if training:
        steps = [T.RandomResizedCrop(sides, interpolation=mode), T.RandomHorizontalFlip()]
    else:
        resized = [round(side / preprocessing.crop_pct) for side in sides]
        steps = [T.Resize(min(resized) if sides[0] == sides[1] else resized, interpolation=mode), T.CenterCrop(sides)]
    transform: Callable[[Image.Image], Tensor] = T.Compose([*steps, T.PILToTensor()])
    return transform
