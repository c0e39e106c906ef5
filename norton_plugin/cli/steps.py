"""The steps of a compression as a command shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.text import Text

from norton_plugin.cli.output import Output
from norton_plugin.pipeline import StepLog


@contextmanager
def shown_steps(out: Output, update: Callable[[Text], None], *, every: float | None = None) -> Iterator[StepLog]:
    """Show the steps of what runs inside, and how far they are.

    A terminal shows one line that changes. Elsewhere, such as in the log of a job, a step that takes long writes a line
    every ten seconds; what takes less writes nothing.

    Args:
        out: Where to.
        update: Changes the words of ``out.status``.
        every: Seconds between two lines; ten by default.
    """

    def still(words: str) -> None:
        if out.err.is_terminal:
            update(Text(words))
        else:
            out.note(words)

    def begins(words: str) -> None:
        if out.err.is_terminal:
            update(Text(words))

    if not out.err.is_terminal:
        update(Text(""))  # the steps speak for themselves
    steps = StepLog(still, begins=begins, every=every)
    with steps.running() as log:
        yield log
