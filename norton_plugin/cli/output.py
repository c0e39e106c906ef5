"""Where a command's words go: results to stdout, all else to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

_WIDTH_OF_FILES = 120  # columns where the output is no terminal


def console(stream: TextIO) -> Console:
    """A console on a stream; files and pipes get a fixed width."""
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_OF_FILES, highlight=False)


def print_error(message: str) -> None:
    """One red line on stderr, whatever line breaks the message has."""
    line = " ".join(message.split())
    console(sys.stderr).print(Text(f"error: {line}", style="red"), soft_wrap=True)


class Output:
    """What a command talks through.

    Args:
        as_json: Results go to stdout as one JSON object, tables nowhere.
        verbose: Log and show tracebacks.
        threads: Of torch on the CPU, None where not asked for.
        stdout: Where results go.
        stderr: Where notes and progress go.
    """

    def __init__(self, *, as_json: bool, verbose: bool, threads: int | None, stdout: TextIO, stderr: TextIO) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self.threads = threads
        self._stdout = stdout
        self.out = console(stdout)
        self.err = console(stderr)

    def show(self, *renderables: RenderableType) -> None:
        """Prints for people; nothing where JSON is asked for."""
        if not self.as_json:
            for renderable in renderables:
                self.out.print(renderable)

    def result(self, data: Mapping[str, Any]) -> None:
        """Prints the result for machines where JSON is asked for; called once per command."""
        if self.as_json:
            self._stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")

    def note(self, text: str) -> None:
        """A remark on stderr."""
        self.err.print(Text(text, style="dim"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A warning on stderr."""
        self.err.print(Text(f"warning: {text}", style="yellow"), soft_wrap=True)

    def status(self, text: str) -> Any:
        """A context manager that shows what is going on, with ``update``, while it lasts."""
        return self._moving().status(text)

    def progress(self) -> Progress:
        """Bars on stderr, gone when they are done."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self._moving(), transient=True, disable=not self.err.is_terminal)

    def _moving(self) -> Console:
        """A console for what moves: before 14.3, rich leaves empty lines where stderr is no terminal."""
        return self.err if self.err.is_terminal else Console(quiet=True)


@contextlib.contextmanager
def session(*, as_json: bool, threads: int | None, verbose: bool) -> Iterator[Output]:
    """Sets up and puts back what the global options ask for.

    Args:
        as_json: See ``Output``; libraries that print to stdout print to stderr meanwhile.
        threads: Of torch on the CPU; None leaves torch's choice.
        verbose: Log at level INFO on stderr, show warnings of libraries, and tracebacks.
    """
    output = Output(as_json=as_json, verbose=verbose, threads=threads, stdout=sys.stdout, stderr=sys.stderr)
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not verbose:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        else:
            stack.enter_context(_logging(output))
        if threads is not None:
            stack.enter_context(torch_threads(threads))
        try:
            yield output
        except Exception:
            if verbose:
                output.err.print_exception()
            raise


@contextlib.contextmanager
def _logging(output: Output) -> Iterator[None]:
    from rich.logging import RichHandler

    logger = logging.getLogger("norton_plugin")
    handler, level = RichHandler(console=output.err, show_path=False), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets torch's CPU threads and puts them back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
