"""Images that a user names, by file or by folder; those that cannot be read are named, not silently left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from norton_plugin.errors import MissingExtraError, SourceError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True)
class Unreadable:
    """An image that was left out.

    Attributes:
        path: The file.
        reason: Why it cannot be read.
    """

    path: Path
    reason: str


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the files among some paths, and those in the folders among them that are named like images.

    Args:
        paths: Files and folders; folders are searched to the bottom.

    Raises:
        SourceError: There is none, or a path is not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(each for each in path.rglob("*") if each.suffix.lower() in _SUFFIXES and each.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise SourceError(f"{str(path)!r} is not there; expected an image, or a folder of images")
    if not found:
        named = ", ".join(map(str, paths[:4])) or "nothing"
        raise SourceError(f"there is no image in {named}; give files, or folders that hold some")
    return found


def open_image(path: Path, *, gray: bool = False) -> Any:
    """Decode one image as a ``PIL.Image`` in RGB, or in one channel when ``gray``.

    Returns:
        The image, or an ``Unreadable`` where it is none that Pillow can read.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image

        from norton_plugin.zoo.pixels import in_eight_bits
    except ImportError as error:
        raise MissingExtraError("Pillow is not installed; run: pip install 'norton-plugin[cam]'") from error
    try:
        with Image.open(path) as image:
            return in_eight_bits(image, gray=gray)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        return Unreadable(path, f"{type(error).__name__}: {error}")
