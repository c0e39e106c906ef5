"""Random numbers that depend on the step alone, so that a resumed run draws what an uninterrupted one would have."""

import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from norton_plugin.mm.runner.augmentation_state import batch_sizes, empty_caches_, take_batch_sizes_
from norton_plugin.mm.runner.migration import unwrap

# Beyond all steps, whose numbers seed as well.
_BATCHES = 2**40
# Where checkpoints hold sizes of batches.
_SIZES = "norton_batch_sizes"


class StepSeedHook(Hook):
    """Seed Python, numpy and torch before each epoch and step from the run's seed and their number.

    mmengine's checkpoints hold no state of random generators, and none of augmentations; with this hook a run that is
    resumed after an epoch draws the same augmentations, samples, batch sizes and dropout masks as one that was never
    interrupted: sizes drawn for the next batches are in its checkpoints, and images kept for mosaics are those of the
    epoch. Bit-equal weights also need the same number of threads and processes.

    Args:
        seed: The run's seed; ``None`` for the one of the runner, which its checkpoints carry.
    """

    priority = "VERY_HIGH"

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the epoch: what is drawn before the first step, and the loader's workers."""
        seed = _mix(self._seed(runner), -1 - runner.epoch)
        _seed_all(seed)
        loader = runner.train_dataloader
        if isinstance(loader, DataLoader):
            seed_workers_(loader, seed)
            if loader.num_workers == 0:
                empty_caches_(loader.dataset)
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop) and not isinstance(loop.dataloader_iterator, SeededBatches):
            seed = self._seed(runner) + runner.rank
            loop.dataloader_iterator = SeededBatches(loop.dataloader_iterator, seed)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Write the sizes that are drawn for the next batches."""
        if sizes := batch_sizes(unwrap(runner.model)):
            checkpoint["meta"][_SIZES] = sizes

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Go on with the sizes of the run that is resumed."""
        if getattr(runner, "_resume", False):
            take_batch_sizes_(unwrap(runner.model), checkpoint.get("meta", {}).get(_SIZES, {}))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the step, differently on every rank."""
        _seed_all(_mix(self._seed(runner) + runner.rank, runner.iter))

    def _seed(self, runner: Runner) -> int:
        return int(runner.seed or 0) if self.seed is None else self.seed


class SeededBatches:
    """Batches, each drawn under a seed of its own.

    Loops that count iterations draw a batch before any hook hears of the step, and when a run is resumed they draw
    all earlier ones in a row.

    Args:
        batches: Drawn from the start of the run.
        seed: At least 0.
    """

    def __init__(self, batches: Iterator[Any], seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.drawn = 0

    def __iter__(self) -> "SeededBatches":
        return self

    def __next__(self) -> Any:
        """Draw one."""
        _seed_all(_mix(self.seed, _BATCHES + self.drawn))
        self.drawn += 1
        return next(self.batches)


def seed_workers_(loader: DataLoader[Any], seed: int) -> None:
    """Give the workers of the next epoch a seed of its own.

    Workers that persist keep a random state no checkpoint knows, so they are started again; mmengine's function that
    seeds them, which uses one seed for all epochs, is given this one.

    Args:
        loader: Its workers do not run.
        seed: At least 0.
    """
    if loader.num_workers == 0:
        return
    function = loader.worker_init_fn
    if isinstance(function, functools.partial) and "seed" in function.keywords:
        keywords = {**function.keywords, "seed": seed % 2**31}
        loader.worker_init_fn = functools.partial(function.func, *function.args, **keywords)
    if loader.persistent_workers:
        loader._iterator = None


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _mix(seed: int, step: int) -> int:
    """Spread (seed, step) over 63 bits, so that neighbouring runs share no stream (Fibonacci hashing)."""
    return ((seed + 1) * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1B54A32D192ED03) % 2**63
