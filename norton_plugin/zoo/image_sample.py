"""A few images of a folder, drawn at random, with the classes of their sub-folders where it has some."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from norton_plugin.errors import SourceError
from norton_plugin.zoo.image_files import SUFFIXES, list_images, list_unlabelled, read_image
from norton_plugin.zoo.preprocessing import Preprocessing
from norton_plugin.zoo.transforms import image_transform


class NormalisedImages(Sequence[Tensor]):
    """Images as a model takes them, one by one; kept as bytes until they are asked for.

    Args:
        images: uint8 (N, C, H, W).
        preprocessing: For mean and standard deviation.
    """

    def __init__(self, images: Tensor, preprocessing: Preprocessing) -> None:
        self._images = images
        self._preprocessing = preprocessing
        self._mean = torch.tensor(preprocessing.mean).view(1, -1, 1, 1)
        self._std = torch.tensor(preprocessing.std).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> NormalisedImages: ...

    def __getitem__(self, index: int | slice) -> Tensor | NormalisedImages:
        """Return one image (1, C, H, W), or several of them."""
        if isinstance(index, slice):
            return NormalisedImages(self._images[index], self._preprocessing)
        return (self._images[index][None].float() / 255 - self._mean) / self._std


@dataclass(frozen=True)
class ImageSample:
    """Images of a folder.

    Attributes:
        images: Normalised.
        labels: Index of each image's sub-folder, in alphabetical order; None where images lie in the folder itself.
        skipped: Files that are no images, each with the reason.
    """

    images: NormalisedImages
    labels: tuple[int, ...] | None
    skipped: tuple[str, ...]


def sample_images(
    root: str | Path,
    preprocessing: Preprocessing,
    *,
    count: int,
    seed: int = 0,
    labelled: bool = True,
    workers: int = 0,
) -> ImageSample:
    """Draw images of a folder; those that cannot be read are left out and named.

    Args:
        root: A folder of images, or of one sub-folder per class.
        preprocessing: What the model expects.
        count: At most so many.
        seed: Of the choice and the order.
        labelled: Whether sub-folders are classes; otherwise images may lie anywhere in the folder.
        workers: Threads that read and resize images; the result does not depend on them.

    Raises:
        SourceError: No image can be read.
    """
    paths, labels = _listed(Path(root).expanduser(), labelled=labelled)
    transform, gray = image_transform(preprocessing), preprocessing.input_size[0] == 1

    def read(index: int) -> Tensor | SourceError:
        try:
            return transform(read_image(paths[index], gray=gray))
        except SourceError as error:
            return error

    images: list[Tensor] = []
    kept: list[int] = []
    skipped: list[str] = []
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        while order and len(images) < count:
            some, order = order[: count - len(images)], order[count - len(images) :]
            for index, found in zip(some, pool.map(read, some), strict=True):
                if isinstance(found, Tensor):
                    images.append(found)
                    kept.append(index)
                else:
                    skipped.append(str(found))
    if not images:
        raise SourceError(f"none of the {len(paths)} images in {str(root)!r} can be read; the first: {skipped[0]}")
    chosen = None if labels is None else tuple(labels[index] for index in kept)
    return ImageSample(NormalisedImages(torch.stack(images), preprocessing), chosen, tuple(skipped))


def _listed(root: Path, *, labelled: bool) -> tuple[list[Path], list[int] | None]:
    """Return the images of a folder, with labels where they lie in sub-folders that are classes."""
    if not labelled:
        return list_unlabelled(root), None
    flat = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES) if root.is_dir() else []
    return (flat, None) if flat else list_images(root)[:2]
