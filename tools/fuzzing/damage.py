"""What truncations and bit flips share: one file of an artefact is damaged, and it must be refused or do no harm."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from fuzzing.verdict import OK, REFUSED, Result, Wrong, attempt, note
from fuzzing.watch import lay_bait
from norton_plugin import artifact

_ECOSYSTEMS = ("cifar", "demo", "timm", "torchvision")
Damage = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class State:
    """What the cases share."""

    folder: Path
    known: list[Known]


def prepare(folder: Path) -> State:
    """Build the artefacts, those of mmdet left aside: they lie on the disk as the others do."""
    lay_bait(folder)
    return State(folder, known_artefacts(folder, only=_ECOSYSTEMS))


def damaged_case(state: State, rng: random.Random, damage: Damage) -> Result:
    """Damage one file of one artefact, and load it.

    Args:
        state: Of ``prepare``.
        rng: Of the case.
        damage: Makes the damaged content from the sound one; the two differ.
    """
    known, name = rng.choice(state.known), rng.choice((MANIFEST, WEIGHTS))
    directory = scratch_copy(known, state.folder)
    try:
        content = (directory / name).read_bytes()
        broken = damage(rng, content)
        note(f"{known.name}/{name}: {len(content)} bytes, now {len(broken)}")
        replace_file(directory / name, broken)
        return _examine(known, directory)
    finally:
        remove(directory)


def _examine(known: Known, directory: Path) -> Result:
    read = attempt("read_manifest", artifact.read_manifest, directory, bounded=True)
    if not read.refused and not same_manifest(read.value, known.data):
        raise Wrong("damage passed unseen by read_manifest")
    loaded = attempt("load", artifact.load, directory, known.dense, bounded=True)
    if not loaded.refused and not same_facts(facts_of(loaded.value), known.facts):
        raise Wrong("damage passed unseen by load")
    if read.refused and not loaded.refused:
        raise Wrong("load took a manifest that read_manifest refuses")
    return REFUSED if loaded.refused else OK
