"""Hooks that seed each step and tell how training goes."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from norton_plugin.errors import RecipeError


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch came to.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean training loss, in nats.
        lr: Learning rate at its end.
        top1: Accuracy in percent, ``None`` where not evaluated.
        top5: Accuracy in percent, ``None`` where not evaluated.
        seconds: Wall-clock time of training, without the evaluation.
    """

    epoch: int
    loss: float
    lr: float
    top1: float | None
    top5: float | None
    seconds: float


class RecordHook(Hook):
    """Keep one :class:`EpochRecord` per epoch, in memory and in a file, and call back.

    Args:
        file: JSON file for the records, read again when a run resumes.
        on_epoch: Called with each record and the number of epochs.
        on_step: Called with the number of steps done and to do.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        file: Path,
        *,
        on_epoch: Callable[[EpochRecord, int], None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.file = file
        self.on_epoch = on_epoch
        self.on_step = on_step
        self.records: list[EpochRecord] = []
        self._pending: EpochRecord | None = None

    def before_train(self, runner: Runner) -> None:
        """Read the records of epochs that a resumed run has behind it."""
        if runner.epoch and self.file.is_file():
            stored = [EpochRecord(**record) for record in json.loads(self.file.read_text())]
            self.records = [record for record in stored if record.epoch <= runner.epoch]

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        self._loss, self._steps = 0.0, 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Add up the loss."""
        self._loss += (outputs or {})["loss"].item()
        self._steps += 1
        if self.on_step is not None:
            self.on_step(runner.iter + 1, runner.max_iters)

    def after_train_epoch(self, runner: Runner) -> None:
        """Note the epoch; it is told once it is evaluated, or before the next one starts.

        Raises:
            RecipeError: The loss became NaN or infinite.
        """
        self._tell(runner)
        if not math.isfinite(self._loss):
            raise RecipeError(
                f"the training loss became NaN or infinite in epoch {runner.epoch + 1}; lower lr or set clip_grad"
            )
        self._pending = EpochRecord(
            epoch=runner.epoch + 1,
            loss=self._loss / max(self._steps, 1),
            lr=float(runner.optim_wrapper.get_lr()["lr"][0]),
            top1=None,
            top5=None,
            seconds=time.perf_counter() - self._started,
        )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Add the accuracy to the epoch."""
        if self._pending is not None:
            found = {key: (metrics or {}).get(f"accuracy/{key}") for key in ("top1", "top5")}
            self._pending = EpochRecord(**{**asdict(self._pending), **found})
        self._tell(runner)

    def after_train(self, runner: Runner) -> None:
        """Tell the last epoch."""
        self._tell(runner)

    def _tell(self, runner: Runner) -> None:
        if self._pending is None:
            return
        record, self._pending = self._pending, None
        self.records.append(record)
        if runner.rank == 0:
            draft = self.file.with_suffix(".tmp")
            draft.write_text(json.dumps([asdict(each) for each in self.records], indent=1))
            draft.replace(self.file)
        if self.on_epoch is not None:
            self.on_epoch(record, runner.max_epochs)
