"""How a case ends: fine, refused clearly, or wrong."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fuzzing import watch
from norton_plugin.errors import NortonError

# How torch, numpy and Python say that there is no memory left, and how torch says what it asked for.
_NO_MEMORY = ("allocate memory", "bad_alloc", "Unable to allocate", "out of memory")
_ASKED = re.compile(r"tried to allocate (\d+) bytes")
_FAIR = 8 * 2**30  # bytes that a model from a file may ask for (norton_plugin.zoo bounds what it builds)
_FRAMES = 3


class Wrong(Exception):
    """The contract is broken.

    Args:
        kind: A few words that are the same for cases of one cause.
        detail: What happened in this case.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Result:
    """What came of one case (a case of the target ``savers`` makes many attempts).

    Attributes:
        ok: Attempts that did what they should.
        refused: Attempts that were refused clearly.
        wrong: (kind, detail) of each attempt that broke the contract.
    """

    ok: int = 0
    refused: int = 0
    wrong: tuple[tuple[str, str], ...] = ()


OK, REFUSED = Result(ok=1), Result(refused=1)


@dataclass(frozen=True)
class Answer:
    """What a call returned, or that it was refused."""

    value: Any = None
    refused: bool = False


notes: list[str] = []  # of the case that runs


def note(text: str) -> None:
    """Note what a case is about to do; the worker's log tells it where the case crashes."""
    notes.append(text.encode("ascii", "backslashreplace").decode())
    print(notes[-1], file=sys.stderr, flush=True)


def attempt(
    what: str,
    function: Callable[..., Any],
    *args: Any,
    bounded: bool = False,
    processes: bool = False,
    **options: Any,
) -> Answer:
    """Call something of the package on hostile input.

    Args:
        what: For people.
        function: Called with the other arguments, under watch.
        *args: Its positional arguments.
        bounded: Whether running out of memory is wrong even where it is told clearly: what a file may ask for is
            looked at before it is asked for.
        processes: Whether other programs may be started.
        **options: Its keyword arguments.

    Returns:
        The value, or that it was refused clearly.

    Raises:
        Wrong: It ran or opened something planted, used the network, or raised anything else than a ``NortonError``.
    """
    value, error = None, None
    with watch.armed(processes=processes) as seen:
        try:
            value = function(*args, **options)
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            error = raised
    touched = watch.trace(seen)
    if touched is not None:
        raise Wrong(f"{what} {touched[0]}", touched[1])
    if error is None:
        return Answer(value)
    if not isinstance(error, NortonError):
        raise Wrong(f"{what} raised {type(error).__name__}", _told(error)) from error
    if not str(error).strip():
        raise Wrong(f"{what} refused without a word", _told(error))
    if bounded and any(_asks_too_much(each) for each in _chain(error)):
        raise Wrong(f"{what} asked for more memory than there is", _told(error))
    return Answer(refused=True)


def _asks_too_much(error: BaseException) -> bool:
    asked = _ASKED.search(str(error))
    if asked is not None:
        return int(asked[1]) > _FAIR
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _told(error: BaseException) -> str:
    """Return the message and the innermost frames."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    where = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"
