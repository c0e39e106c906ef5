"""Options of the commands that draw, and the dense models and images that they draw from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_file_or_pretrained
from norton_plugin.errors import SourceError

if TYPE_CHECKING:
    from norton_plugin.pictures import Unreadable

Dense = Annotated[
    str | None,
    typer.Option(
        "--dense",
        callback=existing_file_or_pretrained,
        metavar="FILE|pretrained",
        help="Weights of the dense original.",
        show_default="where they were random: the same",
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, max=64, metavar="N", help="Images at most; the first ones.")]


def readable_images(out: Output, paths: list[Path], *, gray: bool, limit: int) -> tuple[dict[Path, Any], list[Any]]:
    """Open the first images among some paths; those that cannot be read are told.

    Args:
        out: Where to tell it.
        paths: Files and folders.
        gray: As of ``pictures.open_image``.
        limit: Images to open.

    Returns:
        Images by path, and what was left out.

    Raises:
        SourceError: None can be read.
    """
    from norton_plugin.pictures import Unreadable, find_images, open_image

    images: dict[Path, Any] = {}
    left: list[Unreadable] = []
    for path in find_images(paths):
        if len(images) == limit:
            break
        image = open_image(path, gray=gray)
        if isinstance(image, Unreadable):
            left.append(image)
            out.warn(f"{path} is left out: {image.reason}")
        else:
            images[path] = image
    if not images:
        raise SourceError(f"none of the {len(left)} images can be read; the first: {left[0].path} ({left[0].reason})")
    return images, left


def told(left: list[Any]) -> list[dict[str, str]]:
    """Return what was left out as JSON holds it."""
    return [{"image": str(each.path), "reason": each.reason} for each in left]
