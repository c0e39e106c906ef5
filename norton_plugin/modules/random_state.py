"""Random states that belong to the caller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put the random states of Python, numpy and torch back: the caller goes on as if nothing had been drawn.

    This package draws from generators of its own. But a model's own code may draw as it runs, in evaluation mode too,
    and so may the iterable that calibration data come from.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # Asking CUDA for its state would start it up where nobody uses it.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
