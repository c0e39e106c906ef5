"""Transforms from a Pillow image to a uint8 tensor: timm's own where timm is installed, else torchvision's."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor

from norton_plugin.zoo.preprocessing import Preprocessing


def image_transform(preprocessing: Preprocessing, *, training: bool = False) -> Callable[[Image.Image], Tensor]:
    """Build the transform a model was trained with, without its normalisation.

    Args:
        preprocessing: What the model expects.
        training: Random resized crop, flip and, by timm, colour jitter instead of resize and centre crop.

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
        height, width = (math.floor(side / preprocessing.crop_pct) for side in sides)
        resize = (
            T.Resize(height, mode) if height == width else T.Lambda(partial(_cover, sides=(height, width), mode=mode))
        )
        steps = [resize, T.CenterCrop(sides)]
    transform: Callable[[Image.Image], Tensor] = T.Compose([*steps, T.PILToTensor()])
    return transform


def _cover(image: Image.Image, *, sides: tuple[int, int], mode: Any) -> Image.Image:
    """Resize an image to the smallest of its own proportions that covers (height, width), as timm does."""
    from torchvision.transforms.functional import resize

    ratio = min(image.height / sides[0], image.width / sides[1])
    resized: Image.Image = resize(image, [round(image.height / ratio), round(image.width / ratio)], mode)
    return resized
