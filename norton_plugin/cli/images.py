"""Images for calibration, evaluation and training, as the model at hand wants them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from norton_plugin.zoo import Preprocessing

if TYPE_CHECKING:
    from norton_plugin.cli.output import Output
    from norton_plugin.export import Int8

_BATCH = 64  # most calibration images in one pass
_SMALL = 64  # pixels up to which a whole data set is decoded once and kept in memory


def is_packed(preprocessing: Preprocessing) -> bool:
    """Tell whether images are small and uncropped, so that they are decoded once and augmented in batches."""
    return max(preprocessing.input_size[-2:]) <= _SMALL and preprocessing.crop_pct == 1.0


def open_images(folder: Path, preprocessing: Preprocessing, *, training: bool = False) -> Any:
    """Return a data set of ``mm`` from a folder with one sub-folder per class.

    Args:
        folder: The folder.
        preprocessing: What the model expects.
        training: With random crops and the like; packed images are augmented later, by batches.

    Raises:
        SourceError: The folder is absent or holds no images.
        MissingExtraError: mmengine is not installed.
    """
    from norton_plugin.mm import ImageFolder, pack_folder

    if is_packed(preprocessing):
        height, width = preprocessing.input_size[-2:]
        return pack_folder(folder, size=(height, width), gray=preprocessing.input_size[0] == 1)
    return ImageFolder(folder, preprocessing, training=training)


def calibration_batches(
    out: Output,
    folder: Path,
    preprocessing: Preprocessing,
    *,
    images: int,
    seed: int,
    fewest: int = 1,
    workers: int = 0,
) -> Iterator[tuple[Tensor]]:
    """Read images without labels, and tell which are left out.

    Args:
        out: Where to tell.
        folder: Images may lie anywhere in it.
        preprocessing: What the model expects.
        images: Most images to use.
        seed: Of the choice and the order.
        fewest: Batches, where that leaves two images in each.
        workers: Threads that read images.

    Returns:
        Batches as example inputs are given: one-tuples of (B, C, H, W), normalised, in random order.

    Raises:
        SourceError: No image can be read.
    """
    from norton_plugin.zoo.image_sample import sample_images

    sample = sample_images(folder, preprocessing, count=images, seed=seed, labelled=False, workers=workers)
    for reason in sample.skipped:
        out.warn(f"left out: {reason}")
    batches = even_batches(range(len(sample.images)), fewest=fewest)
    return ((torch.cat([sample.images[index] for index in batch]),) for batch in batches)


def even_batches(order: Sequence[int], *, fewest: int) -> list[list[int]]:
    """Cut a list of images into batches of nearly one size, larger ones first, so that all count alike.

    Args:
        order: Places of the images.
        fewest: As of ``calibration_batches``.
    """
    count = max(math.ceil(len(order) / _BATCH), min(fewest, len(order) // 2), 1)
    ends = [len(order) - len(order) * (count - i - 1) // count for i in range(count)]
    return [list(order[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


def split_sample(
    folder: Path, preprocessing: Preprocessing, *, calibration: int, compared: int, seed: int
) -> tuple[Sequence[Tensor], Sequence[Tensor], tuple[int, ...] | None, tuple[str, ...]]:
    """Draw images to calibrate on, and others to compare on.

    Args:
        folder: Images, or one sub-folder of them per class.
        preprocessing: What the model expects.
        calibration: At most so many, taken first.
        compared: At most so many others.
        seed: Of the choice.

    Returns:
        Images (1, C, H, W) to calibrate on; those to compare on, which may be none; the labels of those that are
        compared (of the first ones where there are no others), None where the folder has no classes; and files that
        were left out, with reasons.

    Raises:
        SourceError: No image can be read.
    """
    from norton_plugin.zoo.image_sample import sample_images

    sample = sample_images(folder, preprocessing, count=calibration + compared, seed=seed)
    first, others = sample.images[:calibration], sample.images[calibration:]
    labels = sample.labels
    if labels is not None and len(others):
        labels = labels[calibration:]
    return first, others, labels, sample.skipped


def int8_settings(
    out: Output,
    folder: Path | None,
    preprocessing: Preprocessing,
    runtime: str,
    sizes: tuple[int, int],
    *,
    seed: int = 0,
) -> Int8 | None:
    """Return the settings of a quantiser, and tell which images are left out.

    Args:
        out: Where to tell.
        folder: As of ``split_sample``; None for no settings.
        preprocessing: Likewise.
        runtime: Whose quantiser.
        sizes: Images to calibrate and to compare on, at most.
        seed: Of the choice.
    """
    from norton_plugin.export import Int8

    if folder is None:
        return None
    first, others, labels, skipped = split_sample(
        folder, preprocessing, calibration=sizes[0], compared=sizes[1], seed=seed
    )
    for reason in skipped:
        out.warn(f"left out: {reason}")
    if len(others) == 0:
        out.warn(f"{folder} has no images left to compare on: the calibration images serve for both")
    return Int8(first, others if len(others) else None, labels, runtime)  # type: ignore[arg-type]  # it refuses others
