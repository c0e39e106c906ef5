"""Artefacts small enough to be written hundreds of times, and the means to attack them."""

import copy
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import norton_plugin.artifact
from norton_plugin.artifact import MANIFEST, WEIGHTS, open_artifact, save
from norton_plugin.artifact.manifest import manifest_hash
from norton_plugin.blocks import CPDBlock
from norton_plugin.surgery.geometry import geometry
from norton_plugin.surgery.structure import diff, structure_hash

# Those that change anything on the disk.
WRITERS = {
    str(Path(norton_plugin.artifact.__file__).with_name(f"{name}.py")) for name in ("saving", "folder_lock", "weights")
}
FILES = {MANIFEST, WEIGHTS}


class Net(nn.Module):
    """A convolution that becomes a block, a norm and two linear layers that are cut, a table that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)
        self.splits = [4, 4]
        self.register_buffer("table", torch.zeros(4096))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).mean((2, 3))))


def compressed(value: float = 1.0, *, rank: int = 1) -> tuple[nn.Module, dict[str, Any]]:
    """What surgery would make of it, all its weights equal to ``value``, and the structure."""
    dense = Net().eval()
    model = copy.deepcopy(dense)
    model.stem = CPDBlock(3, 6, 3, rank, padding=1)
    model.norm = nn.BatchNorm2d(6)
    model.body = nn.Linear(6, 6)
    model.head = nn.Linear(6, 4)
    model.splits = [3, 3]
    model.eval()
    structure = diff(geometry(dense), geometry(model))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model, structure


def save_value(directory: Path, value: int) -> Path:
    """Saves an artefact every part of which tells ``value``; the rank of its block differs with it."""
    model, structure = compressed(value, rank=1 + value % 2)
    return save(directory, model, structure, source={"value": value}, extra={"value": value})


def loaded_value(directory: Path) -> int:
    """The value that every part of an artefact tells, at once."""
    with open_artifact(directory) as stored:
        model = stored.restore(Net().eval())
        assert stored.manifest.source is not None
        found = {float(v) for tensor in model.state_dict().values() for v in (tensor.min(), tensor.max())}
        found |= {float(stored.manifest.extra["value"]), float(stored.manifest.source["value"])}
        assert model.stem.rank == 1 + int(stored.manifest.extra["value"]) % 2
    assert len(found) == 1, f"a mix: {found}"
    return int(found.pop())


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def rewrite(directory: Path, change: Callable[[dict[str, Any]], Any], *, signed: bool = True) -> None:
    """Edits ``norton.json`` as an attacker would: all hashes of the file are made anew."""
    path = directory / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    if signed and isinstance(data.get("structure"), dict):
        data["structure_hash"] = structure_hash(data["structure"])
    if signed and "manifest_hash" in data:
        data["manifest_hash"] = manifest_hash(data)
    path.write_text(json.dumps(data))


def entry_of(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of a module in a manifest."""
    return next(entry for entry in data["structure"]["modules"] if entry["names"] == [name])


def in_child(function: Callable[[], Any], *, memory: int | None = None, file_size: int | None = None) -> int:
    """Runs a function in a child process of its own.

    Args:
        function: Should return nothing.
        memory: Bytes of address space that it may take beyond what this process has.
        file_size: Bytes that it may write to one file.

    Returns:
        0, 1 where it raised, or minus the number of the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if memory is not None:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + memory
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            function()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def at_step(number: int, act: Callable[[], None]) -> Iterator[list[str]]:
    """Calls ``act`` before one line of the code that writes artefacts is executed.

    Args:
        number: Of the line, in the order of execution; -1 for none.
        act: Ends the process, raises, or does something else that may happen at any time.

    Yields:
        The functions that the lines so far are of, in the order of execution.
    """
    steps: list[str] = []

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            steps.append(frame.f_code.co_name)
            if len(steps) == number + 1:
                act()
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename in WRITERS else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(before)
