"""Target: random command lines, most of them in this process, some in one of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fuzzing.artefacts import known_artefacts, remove
from fuzzing.command_grammar import Line, Places, command_line, lay_places
from fuzzing.commands import Printed, judge, run_command
from fuzzing.target import Target
from fuzzing.verdict import OK, REFUSED, Result, Wrong, attempt, note
from fuzzing.watch import lay_bait
from norton_plugin.zoo import load_source

_APART = 40  # one case in so many runs in a process of its own
_THREADS = 8 * (os.cpu_count() or 1)  # no command may take more
_SECONDS = 100.0


@dataclass(frozen=True)
class State:
    """What the cases share."""

    folder: Path
    artefact: Path
    checkpoint: Path


def prepare(folder: Path) -> State:
    """Build what commands are given."""
    lay_bait(folder)
    checkpoint = folder / "digits.pth"
    torch.save(load_source("demo:digits").model.state_dict(), checkpoint)
    return State(folder, known_artefacts(folder, only=("demo",))[0].directory, checkpoint)


def run(state: State, rng: random.Random, number: int) -> Result:
    """Run one command line in a folder of its own."""
    here, root = os.getcwd(), Path(tempfile.mkdtemp(prefix="line-", dir=state.folder))
    try:
        (root / "places").mkdir()
        (root / "cwd").mkdir()
        os.chdir(root / "cwd")
        places = lay_places(root / "places", state.artefact, state.checkpoint)
        line = command_line(rng, places)
        note(f"norton {json.dumps(line.words)}")
        if number % _APART == _APART - 1:
            return _apart(rng, line)
        return _within(line, places)
    finally:
        os.chdir(here)
        remove(root)


def _within(line: Line, places: Places) -> Result:
    with _counted_threads() as counts:
        printed: Printed = attempt("the command", run_command, line.words, processes=True).value
    if any(count > _THREADS for count in counts):
        raise Wrong("a command took any number of threads", f"{counts}")
    done = _judged(printed, line)
    hidden = [path.name for path in Path(places.output).parent.iterdir() if path.name.startswith(".")]
    if hidden:
        raise Wrong("a command left a hidden file behind", f"{hidden} {json.dumps(line.words)}")
    return OK if done else REFUSED


def _judged(printed: Printed, line: Line) -> bool:
    if printed.code == 1 and "doctor" in line.words and "error: " not in printed.err:
        return True  # it found something wrong with this machine
    as_json = line.as_json
    if as_json is None:
        as_json = printed.code != 0 and printed.out.lstrip().startswith("{")
    return judge(printed, as_json=as_json, verbose=line.verbose)


@contextmanager
def _counted_threads() -> Iterator[list[int]]:
    """Let nobody start a hundred thousand threads; tell how many were asked for."""
    counts: list[int] = []
    real = torch.set_num_threads
    torch.set_num_threads = lambda count: counts.append(count) if count > _THREADS else real(count)
    try:
        yield counts
    finally:
        torch.set_num_threads = real


def _apart(rng: random.Random, line: Line) -> Result:
    """In a new process, on a narrow terminal; sometimes nobody reads what it prints."""
    words = [word for word in line.words if "\0" not in word and word.isascii()]
    if "--threads" in words[:-1]:
        words[words.index("--threads") + 1] = "1"
    command = [sys.executable, "-m", "norton_plugin", *words]
    closed = rng.random() < 0.5
    stdout = _closed_pipe() if closed else subprocess.PIPE
    environment = {**os.environ, "COLUMNS": "40"}
    try:
        answer = subprocess.run(
            command, stdout=stdout, stderr=subprocess.PIPE, env=environment, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Wrong("a command in a process of its own hung", json.dumps(words)) from None
    finally:
        if isinstance(stdout, int) and stdout >= 0:
            os.close(stdout)
    printed = Printed(answer.returncode, (answer.stdout or b"").decode(), answer.stderr.decode(errors="replace"))
    if not closed:
        return OK if _judged(printed, Line(words, line.as_json, line.verbose)) else REFUSED
    if printed.code not in (0, 1, 2, 141) or "Exception ignored" in printed.err:
        raise Wrong("a command did not take a closed stdout well", f"{json.dumps(words)}: {printed}"[:600])
    if "Traceback" in printed.err and not line.verbose:
        raise Wrong("a command showed a traceback where stdout is closed", f"{json.dumps(words)}: {printed.err[-300:]}")
    return OK if printed.code == 0 else REFUSED


def _closed_pipe() -> int:
    """Return the writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


TARGET = Target(
    name="command-lines",
    about="random arguments of all commands, one line in 40 in a process of its own",
    cases=300,
    prepare=prepare,
    run=run,
    seconds=120.0,
)
