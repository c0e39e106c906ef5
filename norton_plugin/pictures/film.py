"""Frames as a file: one tall PNG, an animated GIF, or an MP4."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from norton_plugin.errors import ArtifactError, MissingExtraError
from norton_plugin.pictures.sheet import Tile, draw_sheet

SUFFIXES = (".png", ".gif", ".mp4")
_SECONDS = 1.5  # of each frame
_RATE = 10  # frames of a film per second; each is repeated, since players stumble over slow films


def film_bytes(frames: Sequence[Any], suffix: str) -> bytes:
    """Return a file's content.

    Args:
        frames: ``PIL.Image`` in RGB, one or more; padded to the size of the largest in GIF and MP4.
        suffix: One of ``SUFFIXES``.

    Raises:
        MissingExtraError: OpenCV is not installed, which writes MP4.
        ArtifactError: Another suffix, or OpenCV cannot write MP4 here.
    """
    if suffix == ".png":
        return _saved(draw_sheet([[Tile(frame)] for frame in frames]), "PNG")
    if suffix == ".gif":
        first, *others = _padded(frames)
        return _saved(first, "GIF", save_all=True, append_images=others, duration=int(1000 * _SECONDS), loop=0)
    if suffix == ".mp4":
        return _mp4(_padded(frames))
    raise ArtifactError(f"the picture should end in one of {', '.join(SUFFIXES)}, not in {suffix!r}")


def _saved(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _padded(frames: Sequence[Any]) -> list[Any]:
    """Return frames of one size, even on both sides, as video formats want them."""
    from PIL import Image

    width, height = (max(sides) + max(sides) % 2 for sides in zip(*(frame.size for frame in frames), strict=True))
    padded = []
    for frame in frames:
        canvas = Image.new("RGB", (width, height), (255, 255, 255))
        canvas.paste(frame, (0, 0))
        padded.append(canvas)
    return padded


def _mp4(frames: Sequence[Any]) -> bytes:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            "MP4 is written by OpenCV, which is not installed; give a name that ends in .gif, or run: "
            "pip install 'norton-plugin[cam]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="norton-") as folder:
        path = Path(folder) / "film.mp4"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), _RATE, frames[0].size)
        try:
            if not writer.isOpened():
                raise ArtifactError("OpenCV cannot write MP4 on this machine; give a name that ends in .gif")
            for frame in frames:
                for _ in range(round(_SECONDS * _RATE)):
                    writer.write(np.asarray(frame)[:, :, ::-1])
        finally:
            writer.release()
        return path.read_bytes()
