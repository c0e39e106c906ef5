"""Folders of images, one sub-folder per class."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import DATASETS, FUNCTIONS
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from norton_plugin.errors import SourceError
from norton_plugin.zoo.image_files import list_images, read_image
from norton_plugin.zoo.preprocessing import Preprocessing
from norton_plugin.zoo.transforms import image_transform

_log = logging.getLogger(__name__)
_SHOWN = 6


@DATASETS.register_module(name="NortonImageFolder")
class ImageFolder(Dataset[dict[str, Any] | None]):
    """Images decoded and transformed one by one; for big images, with several loader workers.

    A file that cannot be read is None, which ``collate_batch`` leaves out of its batch; the log names it once.

    Args:
        root: Folder with one sub-folder per class.
        preprocessing: What the model expects, or the same as a dict; timm's own transforms are used when timm
            is installed.
        training: Random crops, flips and colours instead of resize and centre crop.
        transform: Own function from an image to a uint8 tensor (C, H, W), instead of ``preprocessing``.
    """

    def __init__(
        self,
        root: str | Path,
        preprocessing: Preprocessing | dict[str, Any] | None = None,
        *,
        training: bool = False,
        transform: Callable[[Image.Image], Tensor] | None = None,
    ) -> None:
        self.paths, self.labels, classes = list_images(root)
        if isinstance(preprocessing, dict):
            preprocessing = Preprocessing(**preprocessing)
        preprocessing = preprocessing or Preprocessing()
        self.gray = preprocessing.input_size[0] == 1
        self.transform = transform or image_transform(preprocessing, training=training)
        self.metainfo = {"classes": tuple(classes)}
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        try:
            image = self.transform(read_image(self.paths[index], gray=self.gray))
        except SourceError as error:
            if index not in self._unreadable:
                self._unreadable.add(index)
                _log.warning("left out: %s", error)
            return None
        return {"inputs": image, "data_samples": self.labels[index]}


@FUNCTIONS.register_module()
def collate_batch(items: dict[str, Any] | Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Stack items to a batch; pass on a batch that the data set has stacked itself.

    Args:
        items: A batch, or items with ``inputs`` (C, H, W) and ``data_samples``, an integer; None for an image that
            could not be read.

    Returns:
        ``inputs`` (B, C, H, W) and ``data_samples`` int64 (B,), B without the items that are None; an empty dict where
        all are.
    """
    if isinstance(items, dict):
        return items
    read = [_named(item) for item in items if item is not None]
    if not read:
        return {}
    batch: dict[str, Any] = default_collate(read)
    batch["data_samples"] = torch.as_tensor(batch["data_samples"], dtype=torch.long)
    return batch


def other_classes(train: Any, val: Any) -> str | None:
    """Return in words how two data sets of folders differ in their classes; None where they have the same.

    Args:
        train: To learn from.
        val: To measure on.
    """
    ours, theirs = train.metainfo["classes"], val.metainfo["classes"]
    if ours == theirs:
        return None
    return (
        f"the folders have different classes: the validation images {len(theirs)} sub-folders "
        f"({', '.join(theirs[:_SHOWN])}), the training images {len(ours)} ({', '.join(ours[:_SHOWN])}). A label is the "
        "place of a sub-folder in alphabetical order, so that both need the same ones; add those that are missing, "
        "empty where there are no images"
    )


def first_item(data: Dataset[Any]) -> Any:
    """Return the first item of a data set whose image can be read; None where none can."""
    items = (data[index] for index in range(len(data)))  # type: ignore[arg-type]
    return next((item for item in items if item is not None), None)


def first_batch(data: Dataset[Any]) -> dict[str, Any]:
    """Return a batch of the first image of a data set that can be read.

    Args:
        data: Not empty.

    Raises:
        SourceError: None of its images can be read.
    """
    item = first_item(data)
    if item is None:
        raise SourceError(f"none of the {len(data)} images of the data set can be read")  # type: ignore[arg-type]
    return collate_batch([item])


def _named(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    image, label = item  # the (image, label) pairs of torchvision's data sets
    return {"inputs": image, "data_samples": int(label)}
