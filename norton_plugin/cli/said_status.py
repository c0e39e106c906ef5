"""What a command is at, said line by line where there is no terminal that could show it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from rich.text import Text

from norton_plugin.pipeline import StepLog


class SaidStatus:
    """Says what a command is at every ten seconds for as long as it takes; what takes less says nothing.

    Args:
        tell: Told each line.
        text: What the command is at; empty where something else tells it.
    """

    def __init__(self, tell: Callable[[str], None], text: str) -> None:
        self._log = StepLog(tell, begins=lambda _: None)
        self.update(text)
        self._running = ExitStack()

    def update(self, text: str | Text) -> None:
        """Go on to something else."""
        self._text = str(text)
        self._log(self._text)

    def count(self, done: int, total: int) -> None:
        """Say how far it is."""
        self._log.detail(f"step {done} of {total}")

    def step(self, text: str, done: int | None, total: int | None) -> None:
        """Go on to something else where the text is another, and say how far that is where it is known."""
        if text != self._text:
            self.update(text)
        if done is not None and total is not None:
            self.count(done, total)

    def __enter__(self) -> SaidStatus:
        self._running.enter_context(self._log.running())
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
