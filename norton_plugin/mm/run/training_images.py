"""Training images for surgery, drawn so that the run itself goes on as if none had been."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from norton_plugin.mm.runner.augmentation_state import parts_of
from norton_plugin.modules.run_state import preserved_state


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
    """Yield the batches of an epoch through the model's data preprocessor, whose state comes back.

    Args:
        runner: Its sampler stands where ``rewind`` put it.
        model: Unwrapped.
        training: Whether the preprocessor augments and mixes, as it does for losses.
    """
    endless = isinstance(runner.train_loop, IterBasedTrainLoop)
    loader = _aside(runner.train_dataloader) if endless else _copied(runner.train_dataloader)
    with preserved_state(model.data_preprocessor):
        for data in loader:
            if isinstance(data, dict) and not data:
                continue  # none of its images can be read
            yield model.data_preprocessor(data, training)


def _copied(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of the same images in the same order, whose samplers are copies.

    A sampler may keep something from one batch to the next, as mmdet's ``AspectRatioBatchSampler`` does: an epoch that
    ends early would spoil the next one, which is the first of the run. Those that cannot be copied serve as they are.
    """
    try:
        shared = {id(part): part for part in parts_of(loader.dataset)}  # samplers refer to the data
        batch_sampler = copy.deepcopy(loader.batch_sampler, shared)
    except Exception:
        return loader
    if batch_sampler is None:
        return loader
    names = ("num_workers", "worker_init_fn", "collate_fn", "pin_memory", "timeout")
    of_workers = ("prefetch_factor", "multiprocessing_context") if loader.num_workers else ()
    settings: dict[str, Any] = {name: getattr(loader, name) for name in (*names, *of_workers)}
    return DataLoader(loader.dataset, batch_sampler=batch_sampler, **settings)


def _aside(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of the same images in an order of its own.

    Loops that count iterations draw from one endless iterator, which is there already: a sampler such as mmengine's
    ``InfiniteSampler`` has a single order, and would be used up.
    """
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    order = torch.randperm(len(loader.dataset)).tolist()  # type: ignore[arg-type]
    return DataLoader(loader.dataset, batch_size=size, sampler=order, collate_fn=loader.collate_fn)
