"""Class activation maps as one picture: a row for each image, a column for each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from norton_plugin.errors import MissingExtraError
from norton_plugin.pictures.activation import CamImage, CamModel, Map
from norton_plugin.pictures.sheet import Tile, draw_sheet

_LEAST_SIDE = 160  # pixels; smaller inputs are drawn enlarged


def draw_grid(images: Sequence[CamImage], names: Sequence[str], columns: Sequence[str]) -> Any:
    """Return the grid as a ``PIL.Image``: the input, then each model's map over it.

    Args:
        images: One or more.
        names: Of the images, below the inputs.
        columns: Headings of the models, the dense one first.

    Raises:
        MissingExtraError: grad-cam or Pillow is not installed.
    """
    rows = []
    for image, name in zip(images, names, strict=True):
        tiles = [Tile(_picture(image.image), f"{_short(name)}\nclass {image.target}")]
        tiles += [Tile(_overlay(image.image, view.map), _caption(view, i)) for i, view in enumerate(image.models)]
        rows.append(tiles)
    return draw_sheet(rows, ["input", *columns])


def _caption(view: CamModel, position: int) -> str:
    agrees = "" if position == 0 else "r = -\n" if view.correlation is None else f"r = {view.correlation:.2f}\n"
    return f"{agrees}class {view.best}, {100 * view.share:.0f} %"


def _overlay(image: Map, heat: Map) -> Any:
    try:
        from pytorch_grad_cam.utils.image import show_cam_on_image
    except ImportError as error:
        raise MissingExtraError("grad-cam is not installed; run: pip install 'norton-plugin[cam]'") from error
    return _picture(show_cam_on_image(image, heat, use_rgb=True).astype(np.float32) / 255)


def _picture(image: Map) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow is not installed; run: pip install 'norton-plugin[cam]'") from error
    picture = Image.fromarray((image * 255).round().clip(0, 255).astype(np.uint8))
    factor = -(-_LEAST_SIDE // min(picture.size))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _short(name: str, *, most: int = 22) -> str:
    return name if len(name) <= most else "..." + name[3 - most :]
