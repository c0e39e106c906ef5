"""A hook for the dense detector: its BatchNorms keep their statistics, as NortonHook lets those of fitted models."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from norton_plugin.mm.run.norm_statistics import keep_statistics_


class KeptStatistics(Hook):
    """All BatchNorms of the model run with their running statistics in training."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Undo what ``model.train()`` did to them."""
        keep_statistics_(runner.model)
