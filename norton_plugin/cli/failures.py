"""What becomes of an error: a line for people, an object for machines, and an exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import typer

from norton_plugin.cli.output import one_line, print_error
from norton_plugin.cli.streams import StdoutError
from norton_plugin.errors import NortonError

BAD_INPUT, FAILURE = 2, 1
_SIGNALLED = 128  # added to a signal's number, as shells do
INTERRUPTED = _SIGNALLED + signal.SIGINT
_READER_GONE = _SIGNALLED + 13  # SIGPIPE, by which a program ends that lets its output be cut off
# typer >= 0.17 brings its own copy of click, older ones import click; BadParameter's ancestor is right for both.
_UsageError: type[Exception] = cast("type[Exception]", typer.BadParameter.__mro__[1])


@dataclass(frozen=True)
class Failure:
    """Why a command did not do its work.

    Attributes:
        type: Name of the error's class; ``UsageError`` for whatever the command line itself refuses.
        message: One line; empty where nobody is left to read it.
        exit_code: 2 for bad input or usage, 128 and the number of the signal that ended the command, else 1.
    """

    type: str
    message: str
    exit_code: int

    def tell(self, *, as_json: bool) -> None:
        """Write it to stderr, and where JSON is asked for to stdout as well.

        Args:
            as_json: Write ``{"error": {"type": ..., "message": ..., "exit_code": ...}}`` to stdout.
        """
        if as_json:
            content = {"type": self.type, "message": self.message, "exit_code": self.exit_code}
            with contextlib.suppress(StdoutError):
                sys.stdout.write(json.dumps({"error": content}, indent=1) + "\n")
                sys.stdout.flush()
        if self.message:
            print_error(self.message)


def interruption(number: int | None) -> Failure:
    """Return the failure of a command that a signal ended.

    Args:
        number: Of the signal; None where an interrupt was raised without one.
    """
    if number is None or number == signal.SIGINT:
        return Failure("Interrupted", "interrupted", INTERRUPTED)
    return Failure("Interrupted", f"ended by {signal.Signals(number).name}", _SIGNALLED + number)


def failure_of(error: BaseException) -> Failure:
    """Return what an error comes to.

    Args:
        error: Whatever a command raised.
    """
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return interruption(None)
    if isinstance(error, StdoutError) and error.reader_gone:
        return Failure(kind, "", _READER_GONE)
    if isinstance(error, _UsageError):
        message = error.format_message()  # type: ignore[attr-defined]
        command = getattr(getattr(error, "ctx", None), "command_path", None) or "norton"
        return Failure("UsageError", one_line(f"{message} ({command} --help lists what there is)"), BAD_INPUT)
    code = BAD_INPUT if isinstance(error, NortonError) else FAILURE
    return Failure(kind, one_line(_told(error)), code)


def _told(error: BaseException) -> str:
    """Return an error in words."""
    text, kind = str(error).strip(), type(error).__name__
    if isinstance(error, NortonError | StdoutError):
        return text
    if isinstance(error, SystemExit):
        return f"code of the model or of a library ended the program (exit {text or 0})"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "out of memory; give smaller sizes or fewer workers"
    return f"{kind}: {text} (-v shows where)" if text else f"{kind} (-v shows where)"


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether ``--json`` is among the options, also where they could not be read.

    Args:
        arguments: Of the command line, without the program's name.
    """
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options
