"""Standard streams that may be closed, full, or a pipe that nobody reads any more."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TextIO, cast


class StdoutError(Exception):
    """Results cannot be written to stdout.

    Args:
        reason: In words.
        reader_gone: Whether stdout is a pipe whose reader has closed it, as ``head`` does; that is nobody's mistake.
    """

    def __init__(self, reason: str, *, reader_gone: bool = False) -> None:
        super().__init__(f"stdout cannot be written: {reason}; redirect it to a file, or to /dev/null")
        self.reader_gone = reader_gone


class _Guarded(ABC):
    """A text stream around another one that says in its own words what a failed write means.

    Args:
        stream: The stream, None where the process was started without one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; characters that the encoding lacks become escapes."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._attempt("write", text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered."""
        self._attempt("flush")

    def isatty(self) -> bool:
        """Return whether this is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, method: str, *arguments: str) -> None:
        if self._stream is None:
            self._failed(OSError(errno.EBADF, "it is closed"))
            return
        try:
            getattr(self._stream, method)(*arguments)
        except OSError as error:
            _point_at_null_device(self._stream)
            self._failed(error)

    @abstractmethod
    def _failed(self, error: OSError) -> None:
        """Say what a write that failed means."""


class Results(_Guarded):
    """Stdout: a write that fails is a :class:`StdoutError`."""

    def _failed(self, error: OSError) -> None:
        raise StdoutError(error.strerror or str(error), reader_gone=error.errno == errno.EPIPE) from error


class Remarks(_Guarded):
    """Stderr: a write that fails is ignored, because no work is given up for a remark."""

    def _failed(self, error: OSError) -> None:
        return None


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Make ``sys.stdout`` a :class:`Results` and ``sys.stderr`` a :class:`Remarks`, and put them back."""
    stdout, stderr = cast(TextIO, Results(sys.stdout)), cast(TextIO, Remarks(sys.stderr))
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        yield


def reserve_descriptors() -> None:
    """Open the null device on those standard descriptors that are closed.

    Otherwise the next file opened, an artefact for example, would get number 1, and what a library prints would
    land in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _point_at_null_device(stream: TextIO) -> None:
    """Let the interpreter's last flush succeed; it would fail once more, and complain."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
