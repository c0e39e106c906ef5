"""What a target is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing.verdict import Result

GIB = 2**30


def _always() -> str | None:
    return None


@dataclass(frozen=True)
class Target:
    """One thing to be fuzzed.

    Attributes:
        name: As of ``--only``.
        about: What is done, for people.
        cases: How many by default.
        prepare: Makes what the cases share, in a folder that all workers of a run share and that outlives a crash.
        run: Runs case ``number``: state, random numbers of this case, number. Raises ``Wrong``, or says how it ended.
        seconds: A case that needs more hangs.
        memory: Bytes that a case may take on top of what the worker has.
        absent: Why it cannot be run here; None where it can.
    """

    name: str
    about: str
    cases: int
    prepare: Callable[[Path], Any]
    run: Callable[[Any, random.Random, int], Result]
    seconds: float = 60.0
    memory: int = 3 * GIB
    absent: Callable[[], str | None] = _always
