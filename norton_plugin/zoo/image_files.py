"""Folders of image files, and reading one."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from norton_plugin.errors import SourceError
from norton_plugin.zoo.pixels import in_eight_bits

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


def list_images(root: str | Path) -> tuple[list[Path], list[int], list[str]]:
    """List the images under ``root/CLASS/``, in a fixed order.

    Args:
        root: The folder.

    Returns:
        Paths, labels (index of the class), and names of the classes, sorted.

    Raises:
        SourceError: The folder is absent, or holds no class folder or no image.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise SourceError(f"{str(root)!r} is not a folder; expected one with a sub-folder of images per class")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        paths += found
        labels += [label] * len(found)
    if not paths:
        what = f"no images in its {len(classes)} sub-folders" if classes else "no sub-folders, one per class"
        raise SourceError(f"{str(root)!r} has {what}; expected {root.name}/CLASS/image.jpg")
    return paths, labels, classes


def list_unlabelled(root: str | Path) -> list[Path]:
    """List the images in a folder and in the folders below it, in a fixed order.

    Raises:
        SourceError: The folder is absent, or holds no image.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise SourceError(f"{str(root)!r} is not a folder; expected one with images, in sub-folders or not")
    found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES]
    shown = [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if not shown:
        raise SourceError(
            f"{str(root)!r} and its sub-folders hold no image; expected files such as {root.name}/image.jpg "
            f"({', '.join(sorted(SUFFIXES))})"
        )
    return sorted(shown)


def read_image(path: Path, *, gray: bool = False) -> Image.Image:
    """Decode one image as RGB, or as one channel when ``gray``.

    Raises:
        SourceError: The file is not an image that Pillow can read.
    """
    try:
        with Image.open(path) as image:
            return in_eight_bits(image, gray=gray)
    except UnidentifiedImageError as error:
        raise SourceError(
            f"{str(path)!r} cannot be read as an image: it is empty, damaged, or of an unknown format"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise SourceError(f"{str(path)!r} cannot be read as an image: {error}") from error
