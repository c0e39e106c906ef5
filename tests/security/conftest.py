"""Traps for what an artefact could make a loader do: code that leaves a mark, a file that is opened, a connection."""

import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_opened: list[str] = []
_hooked: list[bool] = []


def _note(event: str, args: tuple) -> None:
    if event == "open" and isinstance(args[0], str):
        _opened.append(args[0])


@dataclass
class Trap:
    """Something that must not happen.

    Attributes:
        folder: Where its files are.
        url: Of a server on this machine.
        hits: One entry for each connection to the server.
    """

    folder: Path
    url: str
    hits: list[int] = field(default_factory=list)

    @property
    def mark(self) -> Path:
        """The file that code leaves."""
        return self.folder / "mark"

    @property
    def expression(self) -> str:
        """A Python expression that leaves the mark."""
        return f"__import__('pathlib').Path({str(self.mark)!r}).touch()"

    def file(self, name: str, text: str | None = None) -> str:
        """Writes a file that leaves the mark when it runs: a script, or a pickle."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".pth":
            path.write_bytes(pickle.dumps(_Payload(self.mark)))
        else:
            path.write_text(self.expression if text is None else text)
        _opened.clear()  # this was no attack
        return str(path)

    def sprung(self) -> list[str]:
        """What happened, in words."""
        opened = [f"opened {name}" for name in _opened if name.startswith(str(self.folder))]
        return opened + (["code was run"] if self.mark.exists() else []) + ["connected" for _ in self.hits]


@dataclass
class _Payload:
    mark: Path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    """A fresh trap; the current folder is the one its files are in, as after unpacking an artefact."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        trap = Trap(tmp_path, f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth")

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                trap.hits.append(1)
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        if not _hooked:  # such a hook stays for as long as Python runs
            sys.addaudithook(_note)
            _hooked.append(True)
        _opened.clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        yield trap
        server.shutdown(socket.SHUT_RDWR)
