"""What a run's log hears while the model is compressed: which step runs, that it still runs, and what it says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGE = "norton_plugin"
# A step that takes longer says so at least this often.
SECONDS = 10.0
_WORDS = {
    "measure": "counting MACs",
    "decompose": "decomposing the filters",
    "budget": "finding sizes for the budget",
    "fit": "fitting the layers to training images",
    "calibrate": "re-estimating BatchNorm statistics",
    "distill": "learning from the dense model",
    "prune": "following the channels and removing redundant ones",
}


class StepLog:
    """Tells a log the step at work, and again every ``SECONDS`` for as long as it takes.

    Args:
        logger: Of the run.
        every: Seconds between two lines of one step.
    """

    def __init__(self, logger: logging.Logger, *, every: float = SECONDS) -> None:
        self._logger = logger
        self._every = every
        self._ended = threading.Event()
        self._step, self._detail, self._started = "", "", time.perf_counter()

    def __call__(self, step: str) -> None:
        """Begin a step: one of ``compress``, or any words."""
        self._step, self._detail, self._started = _WORDS.get(step, step), "", time.perf_counter()
        self._logger.info("NORTON: %s", self._step)

    def detail(self, words: str) -> None:
        """Say how far the step is; the next line of progress has it."""
        self._detail = words

    @contextmanager
    def running(self) -> Iterator[StepLog]:
        """Watch what runs inside; what the package logs there reaches the run's log as well."""
        beat = threading.Thread(target=self._beat, name="norton-step-log", daemon=True)
        beat.start()
        try:
            with forwarded(self._logger):
                yield self
        finally:
            self._ended.set()
            beat.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            if self._step:
                seconds = time.perf_counter() - self._started
                words = f", {self._detail}" if self._detail else ""
                self._logger.info("NORTON: still %s: %.0f s%s", self._step, seconds, words)


class _Forward(logging.Handler):
    """Hands records on to another logger."""

    def __init__(self, target: logging.Logger) -> None:
        super().__init__(logging.INFO)
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record's message with the target."""
        self._target.log(record.levelno, "NORTON: %s", record.getMessage())


@contextmanager
def forwarded(logger: logging.Logger) -> Iterator[None]:
    """Let what this package logs at INFO and above reach ``logger``: mmengine's own ends in the run's file.

    Args:
        logger: Outside of the package's loggers.
    """
    own = logging.getLogger(PACKAGE)
    handler, level = _Forward(logger), own.level
    own.addHandler(handler)
    if own.getEffectiveLevel() > logging.INFO:
        own.setLevel(logging.INFO)
    try:
        yield
    finally:
        own.removeHandler(handler)
        own.setLevel(level)
