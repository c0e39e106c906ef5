"""Watches what code does beside computing: bait that is opened, imported or run, the network, other processes.

Python tells an audit hook of all of these. The hook lies still until ``armed``; it records what it sees, and stops what
would leave this machine or this process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TOKEN = "norton-bait"  # part of the name of every planted file
MODULE = "norton_bait"  # a module in the current directory
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
_PROCESSES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
_state: dict[str, Any] = {"events": None, "stopped": (), "installed": False, "bait": None}


@dataclass(frozen=True)
class Bait:
    """What a case may name and nothing may touch.

    Attributes:
        weights: A sound checkpoint outside of every artefact.
        ran: A file that planted code creates.
        directory: The current directory of the worker; a module named ``MODULE`` lies in it.
        url: An address; nothing listens there.
    """

    weights: Path
    ran: Path
    directory: Path
    url: str = f"http://127.0.0.1:9/{TOKEN}.pth"

    @property
    def code(self) -> str:
        """Python that shows that it ran."""
        return f"open({str(self.ran)!r}, 'w').close()\n"


def lay_bait(folder: Path) -> Bait:
    """Plant the files, go to the directory, and install the hook; once per process."""
    hidden = folder / TOKEN
    bait = Bait(hidden / "weights.pth", hidden / "ran", folder / "here")
    for directory in (hidden, bait.directory):
        directory.mkdir(parents=True, exist_ok=True)
    if not bait.weights.exists():
        torch.save({"state_dict": {"weight": torch.zeros(1)}}, bait.weights)
        (bait.directory / f"{MODULE}.py").write_text(f"{bait.code}\ndef build(**_):\n    {bait.code}")
    os.chdir(bait.directory)
    if "" not in sys.path:
        sys.path.insert(0, "")  # as python -m norton_plugin has it
    _state["bait"] = bait
    if not _state["installed"]:
        sys.addaudithook(_hook)
        _state["installed"] = True
    return bait


@contextlib.contextmanager
def armed(*, processes: bool = False) -> Iterator[list[str]]:
    """Watch until the end of the block; the list fills with what was seen.

    Args:
        processes: Let other programs be started, as libraries do that ask for the version or the fonts.
    """
    events: list[str] = []
    _state.update(events=events, stopped=_NETWORK if processes else _NETWORK + _PROCESSES)
    try:
        yield events
    finally:
        _state["events"] = None


def trace(seen: list[str]) -> tuple[str, str] | None:
    """Return what was touched, as words for the kind and the detail of a ``Wrong``; None where nothing was."""
    bait = _state["bait"]
    if bait is not None and bait.ran.exists():
        bait.ran.unlink()
        sys.modules.pop(MODULE, None)
        return "ran planted code", "; ".join(seen[:4])
    if seen:
        return f"touched what it must not: {seen[0].partition(' ')[0]}", "; ".join(seen[:4])
    return None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    events = _state["events"]
    if events is None:
        return
    if event in _state["stopped"]:
        events.append(f"{event} {args!r:.200}")
        raise PermissionError(f"the fuzzer does not let {event} through")
    for value in args[:2]:
        text = getattr(value, "co_filename", value)
        text = os.fsdecode(text) if isinstance(text, bytes) else str(text) if isinstance(text, os.PathLike) else text
        if isinstance(text, str) and (TOKEN in text or MODULE in text):
            events.append(f"{event} {text:.200}")
