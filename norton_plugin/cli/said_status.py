"""What a command is at, said line by line where there is no terminal that could show it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from rich.text import Text

from norton_plugin.pipeline.step_log import SECONDS, StepLog


class SaidStatus:
    """Says what a command is at every ``SECONDS`` for as long as it takes; what takes less says nothing.

    Args:
        tell: Told each line.
        text: What the command is at; empty where something else tells it.
    """

    def __init__(self, tell: Callable[[str], None], text: str) -> None:
        self._log = StepLog(tell, begins=lambda _: None, every=SECONDS)
        self._log(text)
        self._running = ExitStack()

    def update(self, text: str | Text) -> None:
        """Go on to something else."""
        self._log(str(text))

    def count(self, done: int, total: int) -> None:
        """Say how far it is."""
        self._log.detail(f"step {done} of {total}")

    def __enter__(self) -> SaidStatus:
        self._running.enter_context(self._log.running())
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
