"""Target that shows what the fuzzer notices: all cases but the first two break the contract, each in its own way."""

from __future__ import annotations

import ctypes
import random
import socket
import sys
import time
from pathlib import Path

from fuzzing.target import Target
from fuzzing.verdict import OK, REFUSED, Result, attempt
from fuzzing.watch import MODULE, Bait, lay_bait
from norton_plugin.errors import SourceError


def run(bait: Bait, rng: random.Random, number: int) -> Result:
    """Run one of the deeds below."""
    deeds = (_fine, _refuse, _raise, _crash, _hang, _fill, _read, _import, _execute, _connect, _leave)
    return REFUSED if attempt("the planted code", deeds[number % len(deeds)], bait).refused else OK


def _fine(bait: Bait) -> None:
    pass


def _refuse(bait: Bait) -> None:
    raise SourceError("this is told clearly")


def _raise(bait: Bait) -> None:
    raise KeyError("modules")


def _crash(bait: Bait) -> None:
    ctypes.string_at(1)


def _hang(bait: Bait) -> None:
    time.sleep(60)


def _fill(bait: Bait) -> None:
    len(bytearray(b"x") * 2**28)


def _read(bait: Bait) -> None:
    bait.weights.read_bytes()


def _import(bait: Bait) -> None:
    __import__(MODULE)


def _execute(bait: Bait) -> None:
    exec(bait.code)


def _connect(bait: Bait) -> None:
    socket.create_connection(("127.0.0.1", 9), timeout=1)


def _leave(bait: Bait) -> None:
    sys.exit(3)


def prepare(folder: Path) -> Bait:
    """Lay the bait out."""
    return lay_bait(folder)


TARGET = Target(
    name="planted",
    about="what the fuzzer must notice",
    cases=11,
    prepare=prepare,
    run=run,
    seconds=3.0,
    memory=2**27,
)
