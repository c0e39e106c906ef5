"""What is heard of a long compression: which step runs, that it still runs, for how long, and how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str], None]

# A step that takes longer says so at least this often.
SECONDS = 10.0
_WORDS = {
    "measure": "counting MACs",
    "decompose": "decomposing the filters",
    "time": "timing the dense model",
    "budget": "finding sizes for the budget",
    "rank": "ranking channels by what reads them",
    "prune": "following the channels and removing redundant ones",
    "fit": "fitting the layers to training images",
    "calibrate": "re-estimating BatchNorm statistics",
    "distill": "learning from the dense model",
}


class StepLog:
    """Tells the step at work, and again every ``SECONDS`` for as long as it takes.

    Args:
        tell: Told how far a step is while it goes on.
        begins: Told the words of a step as it begins; ``tell`` by default.
        every: Seconds between two lines of one step; None for ``SECONDS``.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        tell: Tell,
        *,
        begins: Tell | None = None,
        every: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._tell, self._begins, self._clock = tell, begins or tell, clock
        self._every = SECONDS if every is None else every
        self._ended = threading.Event()
        self._step, self._detail, self._started = "", "", clock()

    def __call__(self, step: str) -> None:
        """Begin a step: one of ``compress``, or any words."""
        self._step, self._detail, self._started = _WORDS.get(step, step), "", self._clock()
        self._begins(self._step)

    def detail(self, words: str) -> None:
        """Say how far the step is; the next line of progress has it."""
        self._detail = words

    def goes_on(self) -> None:
        """Tell that the step still runs."""
        if self._step:
            words = f", {self._detail}" if self._detail else ""
            self._tell(f"still {self._step}: {self._clock() - self._started:.0f} s{words}")

    @contextmanager
    def running(self) -> Iterator[StepLog]:
        """Watch what runs inside."""
        beat = threading.Thread(target=self._beat, name="norton-step-log", daemon=True)
        beat.start()
        try:
            yield self
        finally:
            self._ended.set()
            beat.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            self.goes_on()


@contextmanager
def heard(on_step: Tell | None, on_detail: Tell | None, *, tell: Tell) -> Iterator[tuple[Tell | None, Tell | None]]:
    """Give who hears of the steps: those who asked for them, or else a log.

    Args:
        on_step: Told the name of each step, or None.
        on_detail: Told how far a step is, or None.
        tell: Of the log.

    Yields:
        Who is told the steps and who how far they are.
    """
    if on_step is not None or on_detail is not None:
        yield on_step, on_detail
        return
    with StepLog(tell).running() as log:
        yield log, log.detail
