"""Whether a model that could be trained before surgery still runs in training mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.modules.running import traceable
from norton_plugin.modules.training_mode import run_training, training
from norton_plugin.reasons import Cause, Reason


class TrainingRun:
    """A forward pass in training mode, before and after surgery: code may take another way there.

    Args:
        model: Run once now; flags, buffers and random states come back.
        run_on: Runs the model on inputs.
        example_inputs: Of the model.
        within: Entered around every run, in training mode, to watch it.
    """

    def __init__(
        self,
        model: nn.Module,
        run_on: Callable[[Any], Any],
        example_inputs: Any,
        *,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._model = model
        self._within = within
        self._run_on = run_on
        self._inputs = example_inputs
        self._ran = self._error() is None

    def problem(self) -> Cause | None:
        """Return why the model does not run in training mode any more; None where it does, or never did."""
        error = self._error() if self._ran else None
        return None if error is None else Reason.BREAKS_AROUND.from_error(error)

    def _error(self) -> Exception | None:
        try:
            with preserved_random_state(), traceable(self._model), training(self._model), self._within():
                run_training(self._run_on, self._inputs)
        except Exception as error:
            return error
        return None
