"""Running out of memory, as one sentence that says in which step and what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from norton_plugin.errors import SurgeryError

Step = Callable[[str], None]

# How torch's allocators, CUDA's libraries and the operating system word it.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "alloc_failed")
_ADVICE = {
    "decompose": "set decomposition.restarts to 1, narrow the scope",
    "calibrate": "give smaller calibration batches",
}
_SMALLER_EXAMPLE = "give a smaller example (one image, fewer pixels)"


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or one that it was raised from, says that memory could not be had."""
    while True:
        if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in _WORDS):
            return True
        if error.__cause__ is None:
            return False
        error = error.__cause__


@contextmanager
def memory_errors_explained(on_step: Step | None, *, first: str) -> Iterator[Step]:
    """Turn errors about memory into a ``SurgeryError`` that names the step.

    Args:
        on_step: Told the name of each step as it begins.
        first: Name of what is done before the first step is told.

    Yields:
        The function to tell the steps.

    Raises:
        SurgeryError: Memory ran out.
    """
    current = first

    def step(name: str) -> None:
        nonlocal current
        current = name
        if on_step is not None:
            on_step(name)

    try:
        yield step
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise SurgeryError(
            f"memory ran out in the step {current!r} ({type(error).__name__}: {reason}); the model is unchanged. "
            f"{_ADVICE.get(current, _SMALLER_EXAMPLE).capitalize()}, or use a machine or device with more memory"
        ) from error
