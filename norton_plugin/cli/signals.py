"""Signals that ask the process to end: what is open is closed first, and child processes end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds within which a second signal belongs to the first request: timeout(1), schedulers and terminals tell the
# process and its group.
_ONE_REQUEST = 0.5
_PATIENCE = 3.0  # seconds that a child process gets to end before it is killed


@dataclass
class Interruption:
    """Whether a signal asked the process to end.

    Attributes:
        working: Whether there may be something to clean up.
        number: Of the first such signal while working, None where there was none.
        time: When it came, on the monotonic clock.
    """

    working: bool = False
    number: int | None = None
    time: float = 0.0

    @contextlib.contextmanager
    def while_working(self) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt inside; whoever enters catches it."""
        self.working = True
        try:
            yield
        finally:
            self.working = False


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Raise KeyboardInterrupt at the first signal that asks to end while working, and end at once at another one.

    Signals that the process was started to ignore (``nohup``) stay ignored. Outside of the main thread, which alone may
    set handlers, nothing is changed.

    Yields:
        What came, kept up to date.
    """
    state, process = Interruption(), os.getpid()
    previous: dict[int, Any] = {}

    def handle(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:
            return  # a forked child: its parent was told as well, and ends it in order
        now = time.monotonic()
        if state.working and state.number is None:
            state.number, state.time = number, now
            # torch raises an error where a process that loads data dies; from here on it may
            previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise KeyboardInterrupt
        if state.number is None or now - state.time > _ONE_REQUEST:
            for child in _children():
                child.kill()
            os._exit(128 + number)

    try:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    previous[number] = signal.signal(number, handle)
        yield state
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set in Python


@contextlib.contextmanager
def ended_children() -> Iterator[None]:
    """End the processes of ``multiprocessing`` that were started inside and still run."""
    before = _children()
    try:
        yield
    finally:
        left = [child for child in _children() if child not in before]
        for child in left:
            child.terminate()
        for child in left:
            child.join(_PATIENCE)
            if child.is_alive():
                child.kill()


def own_temporary_folder() -> None:
    """Make the temporary folder of ``multiprocessing`` now, so that this process removes it when it ends.

    Child processes use the folder of their parent where it has one. Where it has none each makes its own, which stays
    behind if the child is killed.
    """
    from multiprocessing.util import get_temp_dir

    get_temp_dir()


def die_quietly_by_interrupt() -> None:
    """Let Ctrl-C end the process without a traceback, where ``interruptible`` is not or no longer in force."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _children() -> list[Any]:
    loaded = sys.modules.get("multiprocessing")  # without it there are none
    return list(loaded.active_children()) if loaded is not None else []
