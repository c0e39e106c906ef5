"""Accuracy of a classifier on a data set."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from norton_plugin.errors import SourceError
from norton_plugin.mm.classification.loading import check_data, make_classifier, make_loader, pick_device
from norton_plugin.mm.classification.metrics import label_ranks


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on one data set.

    Attributes:
        top1: In percent.
        top5: In percent; 100 where there are at most five classes.
        loss: Mean cross entropy, in nats.
        n: Number of images.
        seconds: Wall-clock time.
    """

    top1: float
    top5: float
    loss: float
    n: int
    seconds: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Dataset[Any],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    channels_last: bool = True,
    on_step: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure top-1 and top-5 accuracy.

    Args:
        model: A model from normalised images to logits, or a :class:`~norton_plugin.mm.TimmClassifier`. Its mode,
            device and memory format are put back afterwards.
        data: Images and labels.
        mean: Per-channel mean of images in [0, 1]; ``None``: images are not shifted, or as the classifier does.
        std: Per-channel standard deviation of images in [0, 1], likewise.
        batch_size: Images per batch.
        num_workers: Processes that load data.
        device: ``None`` for CUDA where there is one.
        channels_last: Hand images over in channels-last memory format (the model's weights are left as they are);
            where the model fails on them, as one that takes views of maps, contiguous ones.
        on_step: Called with the number of batches done and to do.

    Returns:
        The accuracies.

    Raises:
        SourceError: No images, wrong channels, or a label that the model has no output for.
    """
    started = time.perf_counter()
    target = pick_device(device)
    home = next((p.device for p in model.parameters()), target)
    modes = {module: module.training for module in model.modules()}
    classifier = make_classifier(model, mean=mean, std=std, channels_last=channels_last)
    check_data(data, classifier)
    loader = make_loader(data, batch_size=batch_size, training=False, num_workers=num_workers)
    ranks, loss = [], 0.0
    try:
        classifier.to(target).eval()
        for step, batch in enumerate(loader):
            if not batch:
                continue  # none of its images can be read
            prepared = classifier.data_preprocessor(batch, False)
            logits, labels = _logits(classifier.model, prepared["inputs"]).float(), prepared["data_samples"]
            if int(labels.max()) >= logits.shape[1]:
                raise SourceError(f"a label is {int(labels.max())}, but the model has {logits.shape[1]} outputs")
            ranks.append(label_ranks(logits, labels).cpu())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            if on_step is not None:
                on_step(step + 1, len(loader))
    finally:
        model.to(home)
        for module, mode in modes.items():
            module.training = mode
    rank = torch.cat(ranks)
    top1, top5 = (100 * int((rank < k).sum()) / len(rank) for k in (1, 5))
    return Evaluation(top1, top5, loss / len(rank), len(rank), time.perf_counter() - started)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Run the model; where it fails on images in channels-last format, on contiguous ones."""
    try:
        logits: Tensor = model(images)
    except RuntimeError:
        if images.is_contiguous():
            raise
        logits = model(images.contiguous())
    return logits
