"""What a run's log hears while the model is compressed: the steps, and what the package itself logs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from norton_plugin.pipeline import StepLog

PACKAGE = "norton_plugin"


@contextmanager
def run_log(logger: logging.Logger, *, every: float | None = None) -> Iterator[StepLog]:
    """Let a run's log hear the steps of what runs inside, and what the package logs there.

    Args:
        logger: Of the run.
        every: Seconds between two lines of one step; ten by default.
    """
    steps = StepLog(lambda words: logger.info("NORTON: %s", words), every=every)
    with forwarded(logger), steps.running() as log:
        yield log


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
