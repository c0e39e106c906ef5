"""A Runner that does not talk, and a guard that puts back what a Runner changes in its process."""

import contextlib
import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn


class QuietRunner(Runner):
    """mmengine's Runner with its log in the log file only, on a device of the caller's choice.

    Args:
        device: Where to train.
        verbose: Log to the terminal too, as mmengine does.
        **options: As for mmengine's Runner.
    """

    def __init__(self, *, device: torch.device, verbose: bool = False, **options: Any) -> None:
        self._device = device
        self._verbose = verbose
        super().__init__(**options)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build mmengine's logger and raise the level of its terminal handler to errors."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not self._verbose and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        return logger

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the model to the chosen device; mmengine would take the first accelerator it sees."""
        if self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        return model.to(self._device)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        # collecting the environment starts compilers and takes seconds
        if self._verbose:
            super()._log_env(env_cfg)


@contextlib.contextmanager
def preserved_process() -> Iterator[None]:
    """Put back random states, thread counts, the start method, cuDNN flags and mmengine's global objects."""
    python, numpy = random.getstate(), np.random.get_state()
    threads, start_method = torch.get_num_threads(), torch.multiprocessing.get_start_method(allow_none=True)
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    managers = (MMLogger, MessageHub, Visualizer, DefaultScope)
    before = [dict(manager._instance_dict) for manager in managers]
    cv2 = _opencv()
    opencv_threads = cv2.getNumThreads() if cv2 else 0
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads(threads)
        torch.multiprocessing.set_start_method(start_method, force=True)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic
        if cv2:
            cv2.setNumThreads(opencv_threads)
        _close_loggers([log for name, log in MMLogger._instance_dict.items() if name not in before[0]])
        for manager, instances in zip(managers, before, strict=True):
            manager._instance_dict.clear()
            manager._instance_dict.update(instances)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def _close_loggers(loggers: list[MMLogger]) -> None:
    for logger in loggers:
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                handler.close()
                logger.handlers.remove(handler)
