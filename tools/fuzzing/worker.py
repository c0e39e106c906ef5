"""The process that runs cases: it may crash, hang or fill the memory, and the run goes on."""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fuzzing.target import Target
from fuzzing.verdict import Result, Wrong, note, notes

READY = "ready"
_SPARE = 2**30
TOO_MUCH = "took more memory than it may"


def serve(connection: Connection, target: Target, folder: Path, seed: int) -> None:
    """Prepare, then run the cases whose numbers arrive, until the connection closes.

    Args:
        connection: Takes numbers, gives ``READY`` once and a ``Result`` for each number.
        target: What to run.
        folder: Shared by all workers of a run.
        seed: Of the run.
    """
    os.setsid()  # children of a case are ended with it
    log = os.open(folder / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    torch.set_num_threads(1)
    for cache in ("TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):  # not those of the user
        os.environ[cache] = str(folder / "cache")
    try:
        state = target.prepare(folder)
    except Exception:
        connection.send(traceback.format_exc())
        return
    _limit_memory(target.memory)
    peak = _peak()
    connection.send(READY)
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        result = examine(target, state, seed=seed, number=number)
        grown = _peak() - peak
        if grown > target.memory:
            wrong = (TOO_MUCH, f"{grown / 2**30:.1f} GiB")
            result = Result(wrong=(*result.wrong, wrong))
        connection.send(result)


def examine(target: Target, state: Any, *, seed: int, number: int) -> Result:
    """Run one case in this process.

    Args:
        target: What to run.
        state: What ``target.prepare`` returned.
        seed: Of the run.
        number: Of the case.
    """
    rng = random.Random(f"{seed}/{target.name}/{number}")
    for start in (random.seed, np.random.seed, torch.manual_seed):
        start(rng.getrandbits(32))
    notes.clear()
    note(f"-- {target.name} {number}")
    try:
        return target.run(state, rng, number)
    except Wrong as wrong:
        return Result(wrong=((wrong.kind, "\n".join([*notes[1:], wrong.detail])),))
    except Exception:
        return Result(wrong=(("the fuzzer itself failed", "\n".join([*notes[1:], traceback.format_exc()[-1500:]])),))


def _limit_memory(extra: int) -> None:
    """Let allocations beyond the limit fail here rather than take the machine down."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        size = int(pages.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        # Room beside the limit: what is asked for and never used is no harm.
        soft = size + extra + _SPARE
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _peak() -> int:
    """Bytes of memory that this process held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
