"""Runs the cases of a target in a worker that is watched, and started again after a crash or a hang."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from fuzzing.target import Target
from fuzzing.verdict import Result
from fuzzing.worker import READY, TOO_MUCH, serve

# What takes seconds to import; the workers are forked from a process that has it, and that has run nothing yet.
_PRELOADED = ["torch", "timm", "torchvision", "mmengine.runner", "norton_plugin.cli.models", "norton_plugin.pipeline"]
_PREPARING = 600.0  # seconds
_TOLD = 1200  # characters of the log of a worker that crashed


@dataclass
class Tally:
    """What became of the cases of one target.

    Attributes:
        target: Which one.
        ok: Attempts that did what they should.
        refused: Attempts that were refused clearly.
        wrong: (case, kind, detail) of what broke the contract.
        seconds: Wall clock.
        skipped: Why nothing was run, or None.
        left: Cases that were not run for want of time.
    """

    target: Target
    ok: int = 0
    refused: int = 0
    wrong: list[tuple[int, str, str]] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str | None = None
    left: int = 0

    @property
    def tried(self) -> int:
        """All attempts."""
        return self.ok + self.refused + len(self.wrong)

    @property
    def kinds(self) -> dict[str, int]:
        """Wrong attempts by kind, the most frequent first."""
        return dict(Counter(kind for _, kind, _ in self.wrong).most_common())

    def add(self, number: int, result: Result) -> None:
        """Count the result of a case."""
        self.ok += result.ok
        self.refused += result.refused
        self.wrong += [(number, kind, detail) for kind, detail in result.wrong]


def run_target(target: Target, *, folder: Path, seed: int, numbers: Iterable[int], until: float | None = None) -> Tally:
    """Run cases of a target.

    Args:
        target: Which one.
        folder: For its files; shared by the targets of a run.
        seed: Of the run.
        numbers: The cases.
        until: ``time.monotonic()`` at which no further case is begun; None for no end.

    Raises:
        RuntimeError: The target could not be prepared.
    """
    tally, start = Tally(target), time.monotonic()
    tally.skipped = target.absent()
    waiting = [] if tally.skipped else list(numbers)
    worker = None
    try:
        while waiting:
            if until is not None and time.monotonic() > until:
                tally.left = len(waiting)
                break
            worker = worker or _Worker(target, folder, seed)
            number = waiting.pop(0)
            result = worker.run(number)
            tally.add(number, result)
            if not worker.usable:
                worker.end()
                worker = None
    finally:
        if worker is not None:
            worker.end()
    tally.seconds = time.monotonic() - start
    return tally


class _Worker:
    """One process, ready for cases."""

    def __init__(self, target: Target, folder: Path, seed: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._target = target
        self._log = folder / "worker.log"
        self.usable = True
        self._connection, other = context.Pipe()
        self._process: ForkServerProcess = context.Process(target=serve, args=(other, target, folder, seed))
        self._process.start()
        other.close()
        answer = self._receive(self._connection, _PREPARING)
        if answer != READY:
            self.end()
            raise RuntimeError(f"{target.name} cannot be prepared: {answer}")

    def run(self, number: int) -> Result:
        """Run one case; afterwards the worker may no longer be ``usable``."""
        with contextlib.suppress(OSError):  # it is dead; what follows says how
            self._connection.send(number)
        answer = self._receive(self._connection, self._target.seconds)
        if not isinstance(answer, Result):
            self.usable = False
            return Result(wrong=((str(answer), self._last_words()),))
        self.usable = TOO_MUCH not in [kind for kind, _ in answer.wrong]
        return answer

    def end(self) -> None:
        """End the process and all its children."""
        self._connection.close()
        with contextlib.suppress(OSError):
            if self._process.pid:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()

    def _receive(self, connection: Connection, seconds: float) -> object:
        """Return what the worker sent, or in words why nothing came."""
        try:
            if connection.poll(seconds):
                return connection.recv()
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode
            name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            return f"crashed: {name}"
        return f"hung for more than {seconds:.0f} s"

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            text = self._log.read_text(errors="replace")
            return text[text.rfind("-- ") :][:_TOLD]
        return ""
