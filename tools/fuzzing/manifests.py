"""Target: edited manifests, with the hashes of an attacker and without."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fuzzing.artefacts import (
    MANIFEST,
    WEIGHTS,
    Known,
    facts_of,
    known_artefacts,
    remove,
    replace_file,
    same_facts,
    same_manifest,
    scratch_copy,
)
from fuzzing.commands import judge, run_command
from fuzzing.manifest_edits import Edit, all_attacks, attacked, edited
from fuzzing.sealing import Covered, covered_by_hashes, render, sealed
from fuzzing.target import Target
from fuzzing.verdict import OK, REFUSED, Result, Wrong, attempt, note
from fuzzing.watch import Bait, lay_bait
from fuzzing.weights_edits import FLOATS, edited_weights
from norton_plugin import artifact, zoo


@dataclass(frozen=True)
class State:
    """What the cases share."""

    folder: Path
    bait: Bait
    known: list[Known]
    covered: dict[str, Covered]
    listed: list[tuple[Known, tuple[str, int]]]


def prepare(folder: Path) -> State:
    """Build the artefacts, and see that hashes can be made to fit."""
    bait = lay_bait(folder)
    known = known_artefacts(folder)
    covered = {}
    for each in known:
        weights = (each.directory / WEIGHTS).read_bytes()
        covered[each.name] = covered_by_hashes(each.data, weights)
        directory = scratch_copy(each, folder)
        data = {**each.data, "extra": {**each.data["extra"], "sealed": True}}
        replace_file(directory / MANIFEST, render(sealed(data, covered[each.name], weights)).encode())
        if not artifact.read_manifest(directory).extra.get("sealed"):
            raise RuntimeError("a manifest with new hashes does not hold what was put in")
        remove(directory)
    listed = [(each, attack) for each in known for attack in all_attacks(each.data, bait)]
    random.Random(0).shuffle(listed)  # so that a few cases are of all kinds
    return State(folder, bait, known, covered, listed)


def run(state: State, rng: random.Random, number: int) -> Result:
    """Edit one artefact and give it to everything that reads artefacts; every second case is an attack of the list."""
    turn, odd = divmod(number, 2)
    if odd or turn >= len(state.listed):
        known = rng.choice(state.known)
        edit = edited(rng, known.data, [each.data for each in state.known], state.bait)
        seal = rng.random() < 0.75
    else:
        known, attack = state.listed[turn]
        edit, seal = attacked(rng, known.data, state.bait, attack), True
    # Whoever takes a hash out knows what it is for.
    seal = seal or not state.covered[known.name].keys() <= edit.data.keys()
    directory = scratch_copy(known, state.folder)
    try:
        kind, fits = rng.random() if odd else 1.0, True
        if kind < 0.06:
            seal = False
            _write_odd_file(rng, known, directory / MANIFEST)
        elif kind < 0.2:
            seal = True
            fits = _write_weights(state, rng, known, directory)
        else:
            _write(state, known, edit, directory, seal=seal)
        return _examine(known, directory, trusted=seal, fits=fits)
    finally:
        remove(directory)


def _write(state: State, known: Known, edit: Edit, directory: Path, *, seal: bool) -> None:
    """Write the edited manifest, with hashes that fit or as they were."""
    note(f"{known.name}, {'hashes fit' if seal else 'hashes left'}: {edit.label}")
    data = edit.data
    if seal:
        data = sealed(data, state.covered[known.name], (directory / WEIGHTS).read_bytes())
    replace_file(directory / MANIFEST, render(data).encode(errors="surrogatepass"))


def _write_weights(state: State, rng: random.Random, known: Known, directory: Path) -> bool:
    """Write an edited file of weights, and the manifest with its hash; returns whether a model may take it."""
    edit = edited_weights(rng, known.directory / WEIGHTS)
    note(f"{known.name}, weights: {edit.label}")
    replace_file(directory / WEIGHTS, edit.content)
    data = sealed(known.data, state.covered[known.name], edit.content)
    replace_file(directory / MANIFEST, render(data).encode())
    return edit.fits


def _write_odd_file(rng: random.Random, known: Known, path: Path) -> None:
    """Write a manifest that is no ordinary file of text."""
    kind = rng.choice(("fifo", "folder", "sparse", "latin", "bom", "utf-16", "empty", "null", "list"))
    note(f"{known.name}: the manifest is {kind}")
    text = json.dumps(known.data)
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(8 * 2**30)
    else:
        contents = {"latin": b"\xe9" + text.encode(), "bom": text.encode("utf-8-sig"), "utf-16": text.encode("utf-16")}
        path.write_bytes(contents.get(kind, {"empty": b"", "null": b"null", "list": b"[]"}.get(kind, b"")))


def _examine(known: Known, directory: Path, *, trusted: bool, fits: bool) -> Result:
    """Give the artefact to the library and to the command line."""
    refused = 0
    read = attempt("read_manifest", artifact.read_manifest, directory, bounded=True)
    refused += read.refused
    if not read.refused:
        if not trusted and not same_manifest(read.value, known.data):
            raise Wrong("an edit passed unseen by read_manifest")
        if read.value.source is not None:
            rebuilt = attempt("rebuild", zoo.rebuild, read.value.source, bounded=True)
            refused += rebuilt.refused
            if not rebuilt.refused and not isinstance(rebuilt.value, nn.Module):
                raise Wrong("rebuild returned something that is no model", repr(rebuilt.value)[:200])
    loaded = attempt("load", artifact.load, directory, known.dense, bounded=True)
    refused += loaded.refused
    if not loaded.refused and not fits:
        raise Wrong("load took weights that do not fit the model")
    if not loaded.refused:
        _check_loaded(known, loaded.value, trusted=trusted)
    printed = attempt("inspect", run_command, ["inspect", str(directory)]).value
    done = judge(printed, as_json=False, codes=(0, 2))
    if done and not trusted:
        printed = run_command(["--json", "inspect", str(directory)])
        if json.loads(printed.out) != known.inspected:
            raise Wrong("an edit passed unseen by inspect", printed.out[:200])
    return REFUSED if refused or not done else OK


def _check_loaded(known: Known, model: nn.Module, *, trusted: bool) -> None:
    if not trusted and not same_facts(facts_of(model), known.facts):
        raise Wrong("an edit passed unseen by load")
    originals = dict(known.dense.named_modules())
    for name, module in _modules(model):
        for key, tensor in {**vars(module)["_parameters"], **vars(module)["_buffers"]}.items():
            saved = known.facts["state"].get(f"{name}.{key}")
            if saved is not None and saved.is_floating_point() and tensor.dtype not in FLOATS:
                raise Wrong("load gave the model weights that are no floats", f"{name}.{key} {tensor.dtype}")
        original = originals.get(name)
        if original is None or type(original) is not type(module):
            continue  # a block: its constructor checks what it is given
        for key, value in vars(module).items():
            if key not in vars(original):
                raise Wrong("the structure gave a module an attribute that it did not have", f"{name}.{key}")
            own = vars(original)[key]
            if type(value) is not type(own) and not (isinstance(value, int) and isinstance(own, torch.SymInt)):
                raise Wrong("the structure changed the type of an attribute", f"{name}.{key} {own!r:.60} {value!r:.60}")


def _modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Return all modules by name, found without the methods of a model that may be broken."""
    yield name, module
    for key, child in vars(module)["_modules"].items():
        if isinstance(child, nn.Module):
            yield from _modules(child, f"{name}.{key}" if name else key)


TARGET = Target(
    name="manifests",
    about="edits and attacks on artefacts of cifar, demo, timm, torchvision and mmdet, most with hashes that fit",
    cases=600,
    prepare=prepare,
    run=run,
    seconds=60.0,
    memory=7 * 2**30,  # what a model may take to build is bounded, at 8 GiB
)
