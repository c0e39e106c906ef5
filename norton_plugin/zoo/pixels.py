"""Pixels of 8 bits from an image of any mode."""

from __future__ import annotations

import numpy as np
from PIL import Image

_SIXTEEN_TO_EIGHT = 65535 // 255


def in_eight_bits(image: Image.Image, *, gray: bool = False) -> Image.Image:
    """Return an image as RGB, or as one channel when ``gray``.

    Pillow's own conversion cuts 16-bit values off at 255, which makes nearly all of such an image white.

    Args:
        image: Decoded by Pillow; gray, colour, palette, CMYK, with or without transparency, 8 or 16 bits.
        gray: One channel.

    Raises:
        ValueError: A mode whose range of values is not known: whole numbers of 32 bits, or floats.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen:
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / _SIXTEEN_TO_EIGHT).round().astype(np.uint8))
    elif image.mode.startswith(("I", "F")):
        raise ValueError(f"it has pixels of 32 bits (mode {image.mode}); save it with 8 or 16 bits per channel")
    return image.convert("L" if gray else "RGB")
