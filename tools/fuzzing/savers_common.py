"""Two models with one structure, a folder of a user to save them into, and processes that do it."""

from __future__ import annotations

import copy
import json
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin import Recipe, artifact, compress
from norton_plugin.zoo import load_source

ARTEFACT = "artefact"
# What a user keeps beside an artefact.
_OWN = {"NOTES.txt": "accuracy 91.2 %\n", "work/log.txt": "epoch 1\n"}
_RECIPE = {"decomposition": {"rank": 2, "restarts": 1, "sweeps": 3}, "pruning": {"keep": 0.5}}


@dataclass(frozen=True)
class Models:
    """What is saved and loaded.

    Attributes:
        dense: The original.
        variants: Compressed models that differ in their weights alone.
        states: Their state dicts.
        structure: Of all of them.
    """

    dense: nn.Module
    variants: list[nn.Module]
    states: list[dict[str, Tensor]]
    structure: dict[str, Any]


def make_models() -> Models:
    """Compress the small network of the demonstration, and change its weights."""
    source = load_source("demo:digits", kwargs={"widths": [16, 24, 32]})
    first, report = compress(source.model, source.example_inputs, Recipe.from_dict(_RECIPE))
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.5)
    variants = [first, second]
    return Models(source.model, variants, [dict(each.state_dict()) for each in variants], report.structure)


def write(folder: Path, models: Models, which: int) -> None:
    """Save a variant as the artefact in a folder."""
    artifact.save(folder / ARTEFACT, models.variants[which], models.structure, extra={"which": which})


def add_own_files(folder: Path) -> None:
    """Put a user's files beside those of the artefact."""
    for name, text in _OWN.items():
        path = folder / ARTEFACT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def lost_files(folder: Path) -> list[str]:
    """Return files of the user that are gone or changed."""
    paths = {name: folder / ARTEFACT / name for name in _OWN}
    return [name for name, path in paths.items() if not path.is_file() or path.read_text() != _OWN[name]]


def listing(folder: Path) -> list[str]:
    """Return all paths below a folder but the user's own."""
    own = {f"{ARTEFACT}/{part}" for name in _OWN for part in (name, name.partition("/")[0])}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return sorted(found - own)


def which_variant(models: Models, model: nn.Module) -> int | None:
    """Return the variant that a loaded model is equal to; None where it is none."""
    state = model.state_dict()
    for index, expected in enumerate(models.states):
        if list(state) == list(expected) and all(torch.equal(state[key], expected[key]) for key in state):
            return index
    return None


@dataclass(frozen=True)
class Child:
    """A process of one function, and the pipe on which it writes what it returns."""

    pid: int
    pipe: int

    def answer(self) -> Any:
        """Wait for its end; returns what the function returned."""
        with os.fdopen(self.pipe) as pipe:
            text = pipe.read()
        os.waitpid(self.pid, 0)
        return json.loads(text) if text else {"died": True}


def fork(function: Callable[[int], Any]) -> Child:
    """Run a function in a copy of this process.

    Args:
        function: Gets the pipe, to show that it has begun; returns what JSON can hold.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    os.close(reading)
    try:
        answer = function(writing)
    except BaseException:
        answer = {"failed": traceback.format_exc()[-600:]}
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)
