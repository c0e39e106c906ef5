"""Target: ``kill -9`` while an artefact is saved."""

from __future__ import annotations

import os
import random
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fuzzing.artefacts import remove
from fuzzing.savers_common import (
    ARTEFACT,
    Models,
    add_own_files,
    fork,
    listing,
    lost_files,
    make_models,
    which_variant,
    write,
)
from fuzzing.target import Target
from fuzzing.verdict import OK, Result, Wrong, attempt, note
from norton_plugin import artifact

_PAUSE = 0.002  # seconds


@dataclass(frozen=True)
class State:
    """What the cases share.

    Attributes:
        folder: Of the run.
        models: What is saved.
        seconds: That one save takes; with a pause at every step on the disk, where True.
        names: All there is after an undisturbed save.
    """

    folder: Path
    models: Models
    seconds: dict[bool, float]
    names: list[str]


def prepare(folder: Path) -> State:
    """Save some times undisturbed, to know how long that takes and what it leaves."""
    models, seconds = make_models(), {}
    place = Path(tempfile.mkdtemp(prefix="undisturbed-", dir=folder))
    for slow in (False, True):
        seconds[slow] = fork(lambda pipe, slow=slow: _seconds(place, models, slow)).answer()
    names = listing(place)
    remove(place)
    return State(folder, models, seconds, names)


def _seconds(place: Path, models: Models, slow: bool) -> float:
    """Return how long a save takes."""
    times = []
    if slow:
        _pause_at_steps()
    for turn in range(7):
        start = time.perf_counter()
        write(place, models, turn % 2)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _pause_at_steps() -> None:
    """Pause at whatever this process asks of the disk: states that last for microseconds are met as often as others."""

    def pause(event: str, args: tuple[object, ...]) -> None:
        if event == "open" or event.partition(".")[0] in ("os", "shutil", "ctypes", "tempfile", "fcntl"):
            time.sleep(_PAUSE)

    sys.addaudithook(pause)


def run(state: State, rng: random.Random, number: int) -> Result:
    """Kill a process that saves again and again; then look at what it left."""
    place = Path(tempfile.mkdtemp(prefix="kill-", dir=state.folder))
    fresh, slow = rng.random() < 0.25, rng.random() < 0.6
    if not fresh:
        write(place, state.models, 0)
        add_own_files(place)
    delay = rng.random() * state.seconds[slow] * (1.0 if fresh else 2.5)
    note(f"killed after {delay:.4f} s, slow: {slow}, there before: {'nothing' if fresh else 'an artefact'}")
    try:
        _kill_while_saving(state, place, delay, slow=slow)
        _check(state, place, fresh=fresh)
    finally:
        remove(place)
    return OK


def _kill_while_saving(state: State, place: Path, delay: float, *, slow: bool) -> None:
    def save_for_ever(pipe: int) -> None:
        if slow:
            _pause_at_steps()
        os.write(pipe, b"!")
        turn = 1
        while True:
            write(place, state.models, turn % 2)
            turn += 1

    child = fork(save_for_ever)
    os.read(child.pipe, 1)
    time.sleep(delay)
    os.kill(child.pid, signal.SIGKILL)
    told = os.read(child.pipe, 2000).decode(errors="replace")
    os.waitpid(child.pid, 0)
    os.close(child.pipe)
    if told:
        raise Wrong("save failed before it was killed", told)


def _check(state: State, place: Path, *, fresh: bool) -> None:
    left = listing(place)
    loaded = attempt("load after a kill", artifact.load, place / ARTEFACT, state.models.dense)
    if not fresh and loaded.refused:
        raise Wrong("a kill during save left no artefact that loads", f"left: {left}")
    if not loaded.refused and which_variant(state.models, loaded.value) is None:
        raise Wrong("a kill during save left a model that nobody saved", f"left: {left}")
    if attempt("save after a kill", write, place, state.models, 1).refused:
        raise Wrong("after a kill the next save is refused", f"left: {left}")
    if listing(place) != state.names:
        raise Wrong("the next save leaves what a killed one began", f"{listing(place)}")
    again = attempt("load", artifact.load, place / ARTEFACT, state.models.dense)
    if again.refused or which_variant(state.models, again.value) != 1:
        raise Wrong("after a kill the next save is not what is loaded")
    if not fresh and lost_files(place):
        raise Wrong("save removed files of the user", f"{lost_files(place)}")


TARGET = Target(
    name="kills",
    about="kill -9 at any moment of a save: the old or the new artefact loads, nothing stale stays, own files stay",
    cases=120,
    prepare=prepare,
    run=run,
    seconds=60.0,
)
