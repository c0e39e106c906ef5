"""Data loaders, models and devices as fine-tuning and evaluation both need them."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from torch import nn
from torch.utils.data import DataLoader, Dataset

from norton_plugin.errors import SourceError
from norton_plugin.mm.classification.classifier import TimmClassifier
from norton_plugin.mm.classification.datasets import collate_batch, first_batch
from norton_plugin.mm.classification.preprocessor import ImagePreprocessor


def make_loader(
    data: Dataset[Any], *, batch_size: int, training: bool, seed: int = 0, num_workers: int = 0
) -> DataLoader[Any]:
    """Build a loader whose order depends on seed and epoch only.

    Args:
        data: Items with ``inputs`` and ``data_samples``, or (image, label) pairs.
        batch_size: Images per batch.
        training: Shuffle, and leave out a last batch that is smaller when there is a full one.
        seed: Of the order.
        num_workers: Processes that load.

    Returns:
        The loader; each batch has ``inputs`` and ``data_samples``.
    """
    count = len(data)  # type: ignore[arg-type]
    return DataLoader(
        data,
        batch_size=batch_size,
        sampler=DefaultSampler(data, shuffle=training, seed=seed),
        num_workers=num_workers,
        collate_fn=collate_batch,
        drop_last=training and count >= batch_size,
        pin_memory=torch.cuda.is_available(),
    )


def make_classifier(
    model: nn.Module, *, mean: Sequence[float] | None, std: Sequence[float] | None, **options: Any
) -> TimmClassifier:
    """Wrap a model, or take a wrapped one with its normalisation unless another is given.

    Args:
        model: The model or a :class:`TimmClassifier`.
        mean: Per-channel mean of images in [0, 1]; ``None`` for none, or for that of the classifier.
        std: Per-channel standard deviation of images in [0, 1], likewise.
        **options: Further arguments of :class:`ImagePreprocessor`.

    Returns:
        A new wrapper around the same module.
    """
    inner, given = model, None
    if isinstance(model, TimmClassifier):
        inner, given = model.model, model.data_preprocessor
    if mean is None:
        mean = given.mean.flatten().tolist() if isinstance(given, ImagePreprocessor) else (0.0,)
    if std is None:
        std = given.std.flatten().tolist() if isinstance(given, ImagePreprocessor) else (1.0,)
    return TimmClassifier(inner, ImagePreprocessor(mean, std, **options))


def pick_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, or CUDA where there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_data(data: Dataset[Any], classifier: TimmClassifier) -> None:
    """Refuse a data set without images, or whose channels do not fit the normalisation.

    Raises:
        SourceError: It does not fit.
    """
    if len(data) == 0:  # type: ignore[arg-type]
        raise SourceError("the data set has no images; expected at least one")
    channels = first_batch(data)["inputs"].shape[1]
    expected = classifier.data_preprocessor.mean.numel()
    if expected not in (1, channels):
        raise SourceError(f"images have {channels} channels, but mean and std are given for {expected}")
