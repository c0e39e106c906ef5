"""Training images for surgery, drawn so that the run itself goes on as if none had been."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader


def rewind(runner: Runner) -> None:
    """Start with the images of this epoch in its order, whatever ran before: a resumed run must see the same ones.

    Random states change; the caller puts them back (``preserved_random_state``).
    """
    torch.manual_seed(int(runner.seed or 0))
    np.random.seed(int(runner.seed or 0) % 2**32)
    random.seed(int(runner.seed or 0))
    sampler: Any = getattr(runner.train_dataloader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(runner.epoch)


def batches(runner: Runner, model: BaseModel, *, training: bool) -> Iterator[Any]:
    """Yield the batches of an epoch through the model's data preprocessor.

    Args:
        runner: Its sampler stands where ``rewind`` put it.
        model: Unwrapped.
        training: Whether the preprocessor augments and mixes, as it does for losses.
    """
    loader = runner.train_dataloader
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        loader = _aside(loader)
    for data in loader:
        yield model.data_preprocessor(data, training)


def _aside(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of the same images in an order of its own.

    Loops that count iterations draw from one endless iterator, which is there already: a sampler such as mmengine's
    ``InfiniteSampler`` has a single order, and would be used up.
    """
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    order = torch.randperm(len(loader.dataset)).tolist()  # type: ignore[arg-type]
    return DataLoader(loader.dataset, batch_size=size, sampler=order, collate_fn=loader.collate_fn)
