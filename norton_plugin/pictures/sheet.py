"""A sheet of images in rows and columns, with a heading above each column and a caption below each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from norton_plugin.errors import MissingExtraError

GAP, _LINE, _FONT = 10, 20, 15
_PAPER, _INK, _SOFT = (255, 255, 255), (28, 33, 40), (89, 99, 110)


@dataclass(frozen=True)
class Tile:
    """One image of a sheet.

    Attributes:
        image: A ``PIL.Image`` in RGB.
        caption: Below it; may hold a line break.
    """

    image: Any
    caption: str = ""


def draw_sheet(rows: Sequence[Sequence[Tile]], headings: Sequence[str] = ()) -> Any:
    """Return the sheet as a ``PIL.Image``.

    Args:
        rows: Each with as many tiles as the others; tiles of a row are of one height.
        headings: Above the columns; may hold line breaks.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingExtraError("Pillow is not installed; run: pip install 'norton-plugin[cam]'") from error
    try:
        font = ImageFont.load_default(_FONT)
    except TypeError as error:
        raise MissingExtraError("Pillow is older than 10.1; run: pip install 'norton-plugin[cam]'") from error
    widths = [max(row[i].image.width for row in rows) for i in range(len(rows[0]))]
    words = [[*headings[i : i + 1], *(row[i].caption for row in rows)] for i in range(len(widths))]
    widths = [max(width, *(_width(text, font) for text in own)) for width, own in zip(widths, words, strict=True)]
    top = _LINE * max((heading.count("\n") + 1 for heading in headings), default=0)
    below = [_LINE * max((t.caption.count("\n") + 1 for t in row if t.caption), default=0) for row in rows]
    heights = [max(tile.image.height for tile in row) for row in rows]
    size = (GAP + sum(width + GAP for width in widths), GAP + top + sum(heights) + sum(below) + GAP * len(rows))
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    lefts = [GAP + sum(widths[:i]) + GAP * i for i in range(len(widths))]
    for left, heading in zip(lefts, headings, strict=False):
        pen.multiline_text((left, GAP // 2), heading, fill=_INK, font=font, spacing=4)
    y = GAP + top
    for row, height, more in zip(rows, heights, below, strict=True):
        for left, tile in zip(lefts, row, strict=True):
            sheet.paste(tile.image, (left, y))
            pen.multiline_text((left, y + tile.image.height + 3), tile.caption, fill=_SOFT, font=font, spacing=4)
        y += height + more + GAP
    return sheet


def _width(text: str, font: Any) -> int:
    return max(int(font.getlength(line)) for line in text.split("\n"))
