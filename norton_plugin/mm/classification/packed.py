"""Small images decoded once into one array, so that training does not wait for a JPEG decoder."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from norton_plugin.errors import SourceError
from norton_plugin.zoo.image_files import list_images, read_image

_log = logging.getLogger(__name__)
_LIMIT = 4 * 1024**3  # bytes of pixels kept in memory


class PackedImages(Dataset[dict[str, Any]]):
    """Images and labels in memory, handed out by whole batches.

    Args:
        images: uint8 (N, C, H, W).
        labels: Integers (N,), from 0.
        classes: Names of the classes, may be empty.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, classes: Sequence[str] = ()) -> None:
        if images.dim() != 4 or images.dtype != torch.uint8 or labels.shape != images.shape[:1] or not len(labels):
            raise SourceError(
                f"images {tuple(images.shape)} {images.dtype} and labels {tuple(labels.shape)} do not fit: expected "
                "uint8 (N, C, H, W) and (N,), N at least 1"
            )
        self.images = images
        self.labels = labels.long()
        self.metainfo = {"classes": tuple(classes)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.images[index], "data_samples": int(self.labels[index])}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a whole batch (torch's loader calls this where it exists); collate with ``collate_batch``."""
        index = torch.as_tensor(indices)
        return {"inputs": self.images[index], "data_samples": self.labels[index]}

    def subset(self, count: int, *, seed: int = 0) -> "PackedImages":
        """Return ``count`` images drawn without repetition, the same for the same seed."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return PackedImages(self.images[order], self.labels[order], classes=self.metainfo["classes"])


def pack_folder(
    root: str | Path, *, size: int | tuple[int, int] | None = None, gray: bool = False, cache: bool = True
) -> PackedImages:
    """Decode an image folder into memory, once: a copy is kept in the user's cache folder.

    Args:
        root: Folder with one sub-folder per class.
        size: Side in pixels, or (H, W), that images are resized to; ``None`` when all have one size.
        gray: One channel instead of RGB.
        cache: Read and write ``$XDG_CACHE_HOME/norton_plugin/data`` (``~/.cache`` when unset). A change of
            any file's name, size or time makes a new copy.

    Returns:
        The images, without those that cannot be read: the log names them.

    Raises:
        SourceError: No images that can be read, images of several sizes without ``size``, or more than 4 GiB of
            pixels.
    """
    paths, labels, classes = list_images(root)
    file = cache_folder() / f"{_key(Path(root), paths, size, gray)}.npz"
    if cache and file.is_file():
        try:
            with np.load(file, allow_pickle=False) as stored:
                skipped = stored["skipped"].tolist() if "skipped" in stored else []
                packed = PackedImages(
                    torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"]), classes=classes
                )
            _warn_of(skipped)
            return packed
        except (OSError, ValueError, KeyError):
            _log.warning("%s is damaged and is written again", file)
    images, kept, skipped = _decode(paths, size, gray)
    if not kept:
        raise SourceError(f"none of the {len(paths)} images in {str(root)!r} can be read; the first: {skipped[0]}")
    _warn_of(skipped)
    chosen = np.asarray([labels[index] for index in kept])
    if cache:
        _store(file, images, chosen, skipped)
    return PackedImages(torch.from_numpy(images), torch.from_numpy(chosen), classes=classes)


def _warn_of(skipped: Sequence[str]) -> None:
    for reason in skipped:
        _log.warning("left out: %s", reason)


@DATASETS.register_module(name="NortonPackedFolder")
class PackedFolder(PackedImages):
    """:func:`pack_folder` as a data set for mmengine configs.

    Args:
        root: Folder with one sub-folder per class.
        size: Side in pixels, or (H, W); ``None`` when all images have one size.
        gray: One channel instead of RGB.
    """

    def __init__(self, root: str | Path, *, size: int | tuple[int, int] | None = None, gray: bool = False) -> None:
        packed = pack_folder(root, size=size, gray=gray)
        super().__init__(packed.images, packed.labels, classes=packed.metainfo["classes"])


def cache_folder() -> Path:
    """Return the folder where decoded data is kept; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "norton_plugin" / "data"


def _key(root: Path, paths: Sequence[Path], size: int | tuple[int, int] | None, gray: bool) -> str:
    digest = hashlib.sha256(f"{root.expanduser().resolve()}|{size}|{gray}".encode())
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:  # a link that leads nowhere
            raise SourceError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        digest.update(f"{path}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return f"{root.name}-{digest.hexdigest()[:16]}"


def _decode(
    paths: Sequence[Path], size: int | tuple[int, int] | None, gray: bool
) -> tuple[np.ndarray, list[int], list[str]]:
    """Return pixels uint8 (N, C, H, W), the places in ``paths`` they come from, and why others are left out."""
    pixels = np.empty((0, 0, 0, 0), np.uint8)  # of that many images, once the first tells their size
    kept: list[int] = []
    skipped: list[str] = []
    height, width = (size, size) if isinstance(size, int) else size or (0, 0)
    for index, path in enumerate(paths):
        try:
            image = read_image(path, gray=gray)
        except SourceError as error:
            skipped.append(str(error))
            continue
        if not kept:
            height, width = (height, width) if size else (image.height, image.width)
            pixels = _room(len(paths), height, width, 1 if gray else 3)
        if (image.height, image.width) != (height, width):
            if size is None:
                raise SourceError(
                    f"{str(path)!r} is {image.width}x{image.height} but the first image {width}x{height}; give a size"
                )
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels[len(kept)] = np.asarray(image).reshape(pixels.shape[1:])
        kept.append(index)
    return np.ascontiguousarray(pixels[: len(kept)].transpose(0, 3, 1, 2)), kept, skipped


def _room(count: int, height: int, width: int, channels: int) -> np.ndarray:
    if count * channels * height * width > _LIMIT:
        raise SourceError(
            f"{count} images of {channels}x{height}x{width} do not fit into memory; use ImageFolder instead"
        )
    return np.empty((count, height, width, channels), np.uint8)


def _store(file: Path, images: np.ndarray, labels: np.ndarray, skipped: Sequence[str]) -> None:
    draft: str | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".tmp", delete=False) as opened:
            draft = opened.name
            np.savez(opened, images=images, labels=labels, skipped=np.asarray(skipped, dtype=str))
        os.replace(draft, file)
    except OSError as error:  # a full or read-only disk costs time later, nothing else
        _log.warning("decoded images are not kept: %s", error)
    finally:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)  # still there where writing was cut short
