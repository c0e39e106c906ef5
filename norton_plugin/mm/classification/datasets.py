"""Folders of images, one sub-folder per class."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import DATASETS, FUNCTIONS
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from norton_plugin.errors import SourceError
from norton_plugin.zoo.pixels import in_eight_bits
from norton_plugin.zoo.preprocessing import Preprocessing
from norton_plugin.zoo.transforms import image_transform

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


def listed(root: str | Path, *, labelled: bool) -> tuple[list[Path], list[int], list[str]]:
    """Return what ``list_images`` does; without labels the images that lie anywhere in the folder, with label 0."""
    if labelled:
        return list_images(root)
    paths = list_unlabelled(root)
    return paths, [0] * len(paths), []


def read_image(path: Path, *, gray: bool = False) -> Image.Image:
    """Decode one image as RGB, or as one channel when ``gray``.

    Raises:
        SourceError: The file is not an image that Pillow can read.
    """
    try:
        with Image.open(path) as image:
            return in_eight_bits(image, gray=gray)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise SourceError(f"{str(path)!r} cannot be read as an image: {error}") from error


@DATASETS.register_module(name="NortonImageFolder")
class ImageFolder(Dataset[dict[str, Any]]):
    """Images decoded and transformed one by one; for big images, with several loader workers.

    Args:
        root: Folder with one sub-folder per class.
        preprocessing: What the model expects, or the same as a dict; timm's own transforms are used when timm
            is installed.
        training: Random crops, flips and colours instead of resize and centre crop.
        transform: Own function from an image to a uint8 tensor (C, H, W), instead of ``preprocessing``.
        labelled: Whether sub-folders are classes; otherwise images may lie anywhere in the folder, all with label 0.
    """

    def __init__(
        self,
        root: str | Path,
        preprocessing: Preprocessing | dict[str, Any] | None = None,
        *,
        training: bool = False,
        transform: Callable[[Image.Image], Tensor] | None = None,
        labelled: bool = True,
    ) -> None:
        self.paths, self.labels, classes = listed(root, labelled=labelled)
        if isinstance(preprocessing, dict):
            preprocessing = Preprocessing(**preprocessing)
        preprocessing = preprocessing or Preprocessing()
        self.gray = preprocessing.input_size[0] == 1
        self.transform = transform or image_transform(preprocessing, training=training)
        self.metainfo = {"classes": tuple(classes)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.transform(read_image(self.paths[index], gray=self.gray))
        return {"inputs": image, "data_samples": self.labels[index]}


@FUNCTIONS.register_module()
def collate_batch(items: dict[str, Any] | Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items to a batch; pass on a batch that the data set has stacked itself.

    Args:
        items: A batch, or items with ``inputs`` (C, H, W) and ``data_samples``, an integer.

    Returns:
        ``inputs`` (B, C, H, W) and ``data_samples`` int64 (B,).
    """
    if isinstance(items, dict):
        return items
    batch: dict[str, Any] = default_collate([_named(item) for item in items])
    batch["data_samples"] = torch.as_tensor(batch["data_samples"], dtype=torch.long)
    return batch


def _named(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    image, label = item  # the (image, label) pairs of torchvision's data sets
    return {"inputs": image, "data_samples": int(label)}
