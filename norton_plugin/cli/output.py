"""Where a command's words go: results to stdout, all else to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from norton_plugin.modules.threads import torch_threads

_WIDTH_OF_FILES = 120  # columns where the output is no terminal
_LONGEST = 1000  # characters of a message; values that it quotes may be of any length


def console(stream: TextIO) -> Console:
    """Return a console on a stream; files and pipes get a fixed width, and brackets in names are no markup."""
    width = None if stream.isatty() else _WIDTH_OF_FILES
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def one_line(message: str) -> str:
    """Return a message without line breaks and control characters, and cut where it is very long."""
    line = " ".join(message.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."


def print_error(message: str) -> None:
    """Print one red line on stderr."""
    target = console(sys.stderr)
    _print_text(target, Text(f"error: {one_line(message)}", style="red"), whole=not target.is_terminal)


def _print_text(target: Console, text: Text, *, whole: bool) -> None:
    """Print a sentence, wrapped between words only: paths are for copying.

    Args:
        target: Where.
        text: The sentence.
        whole: Leave it on one line; a terminal breaks it where it ends, and copies it without the break.
    """
    if not whole:
        lines = textwrap.fill(text.plain, target.width, break_long_words=False, break_on_hyphens=False)
        text = Text(lines, style=text.style, spans=text.spans)
    target.print(text, soft_wrap=True)


class Output:
    """Where a command sends its results and remarks.

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
        """Print sentences and tables for people; nothing where JSON is asked for."""
        if not self.as_json:
            for renderable in renderables:
                if isinstance(renderable, str | Text):
                    _print_text(self.out, Text.assemble(renderable), whole=False)
                else:
                    self.out.print(renderable)

    def show_whole(self, line: str) -> None:
        """Print a line for people that is not wrapped, such as a command to copy."""
        if not self.as_json:
            _print_text(self.out, Text(line), whole=True)

    def result(self, data: Mapping[str, Any]) -> None:
        """Print the result for machines where JSON is asked for; called once per command.

        Args:
            data: JSON-able; numbers that are not finite become null, since JSON has none.
        """
        if self.as_json:
            self._stdout.write(json.dumps(_finite(data), indent=1, allow_nan=False) + "\n")

    def note(self, text: str) -> None:
        """Print a remark on stderr."""
        self._remark(Text(one_line(text), style="dim"))

    def warn(self, text: str) -> None:
        """Print a warning on stderr."""
        self._remark(Text(f"warning: {one_line(text)}", style="yellow"))

    def _remark(self, text: Text) -> None:
        _print_text(self.err, text, whole=not self.err.is_terminal)

    def status(self, text: str) -> Any:
        """Return a context manager that shows what is going on, with ``update``, while it lasts.

        Where stderr is no terminal, what lasts says so every ten seconds.
        """
        from norton_plugin.cli.said_status import SaidStatus

        return self.err.status(Text(one_line(text))) if self.err.is_terminal else SaidStatus(self.note, one_line(text))

    @contextlib.contextmanager
    def counting(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show how far something is, as a bar in a terminal, as a line every ten seconds elsewhere.

        Args:
            text: What it is.

        Yields:
            To be called with how much is done, and of how much.
        """
        with self.stepping(text) as step:
            yield lambda done, total: step(text, done, total)

    @contextlib.contextmanager
    def stepping(self, text: str) -> Iterator[Callable[[str, int | None, int | None], None]]:
        """Show what is going on, and how far it is, like ``counting``; what it is may change.

        Args:
            text: What comes first.

        Yields:
            To be called with what is going on, how much of it is done, and of how much; None where that is not known.
        """
        if self.err.is_terminal:
            with self.progress() as progress:
                task = progress.add_task(text, total=None)
                yield lambda words, done, total: progress.update(
                    task, description=words, completed=done or 0, total=total
                )
        else:
            with self.status(text) as said:
                yield said.step

    def progress(self) -> Progress:
        """Return bars on stderr, gone when they are done."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self._moving(), transient=True, disable=not self.err.is_terminal)

    def _moving(self) -> Console:
        """Return a console for what moves: before 14.3, rich leaves empty lines where stderr is no terminal."""
        return self.err if self.err.is_terminal else Console(quiet=True)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextlib.contextmanager
def session(*, as_json: bool, threads: int | None, verbose: bool) -> Iterator[Output]:
    """Set up and put back what the global options ask for.

    Args:
        as_json: See ``Output``; libraries that print to stdout print to stderr meanwhile.
        threads: Of torch on the CPU; None leaves torch's choice.
        verbose: Log at level INFO on stderr, not warnings alone; show warnings of libraries, and tracebacks.
    """
    output = Output(as_json=as_json, verbose=verbose, threads=threads, stdout=sys.stdout, stderr=sys.stderr)
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not verbose:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        stack.enter_context(_logging(output))
        if threads is not None:
            stack.enter_context(torch_threads(threads))
        try:
            yield output
        except Exception:
            if verbose:
                output.err.print_exception()
            raise


class _Warnings(logging.Handler):
    """Shows what the package warns of as a command's own warnings."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Show one warning."""
        self._output.warn(record.getMessage())


@contextlib.contextmanager
def _logging(output: Output) -> Iterator[None]:
    """While entered, show what the package logs: warnings, and where ``verbose`` everything from level INFO."""
    from rich.logging import RichHandler

    logger = logging.getLogger("norton_plugin")
    level = logger.level
    handler: logging.Handler = _Warnings(output)
    if output.verbose:
        handler = RichHandler(console=output.err, show_path=False, show_time=output.err.width >= 80)
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
