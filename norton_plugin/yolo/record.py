"""The structure that a compressed model of Ultralytics carries, and that loading its weights heeds.

Trainers of Ultralytics build the dense model of the YAML file anew and fill in what fits: of a compressed model next to
nothing would, and the rest would stay random with one line in the log. Every task goes through ``BaseModel.load``. So a
compressed model carries its structure as an attribute, and ``install`` puts a step in front of that method which
rebuilds the structure before the weights are filled in. Weights without such an attribute pass as before.

Checkpoints of Ultralytics are pickles of whole models: reading a compressed one imports this module, and
``StructureRecord.__setstate__`` installs the step. No user has to think of it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from norton_plugin.errors import ArtifactError
from norton_plugin.surgery.structure import Structure, apply_structure_

_ATTRIBUTE = "norton_record"


@dataclass(frozen=True)
class StructureRecord:
    """The way from the dense model of a YAML file to a compressed one.

    Attributes:
        structures: One per compression, in their order; JSON, as ``surgery.structure.diff`` makes it.
    """

    structures: tuple[Structure, ...]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        install()


def record_of(model: Any) -> StructureRecord | None:
    """Return what a model carries, or None where it is dense."""
    record = getattr(model, _ATTRIBUTE, None)
    return record if isinstance(record, StructureRecord) else None


def attach_(model: nn.Module, structure: Structure) -> None:
    """Let a model carry one more structure."""
    earlier = record_of(model)
    setattr(model, _ATTRIBUTE, StructureRecord((*earlier.structures, structure) if earlier else (structure,)))


def rebuild_(model: nn.Module, weights: Any) -> None:
    """Give a freshly built model the structure of the weights that it is about to load.

    Args:
        model: Dense, or of the same structure already.
        weights: What ``BaseModel.load`` takes: a model, or a checkpoint with one as ``"ema"`` or ``"model"``.

    Raises:
        ArtifactError: The structures do not fit each other.
    """
    source = (weights.get("ema") or weights.get("model")) if isinstance(weights, Mapping) else weights
    own, given = record_of(model), record_of(source)
    if own == given:
        return
    if own is not None or given is None:
        kind = "a dense one" if given is None else "one of another structure"
        raise ArtifactError(f"the model is compressed, and the weights are of {kind}; load them into a model they fit")
    for structure in given.structures:
        apply_structure_(model, structure)
    setattr(model, _ATTRIBUTE, given)


def install() -> None:
    """Put ``rebuild_`` in front of ``BaseModel.load``; a second call changes nothing."""
    base = import_module("ultralytics.nn.tasks").BaseModel
    original = base.load
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def load(self: nn.Module, weights: Any, *args: Any, **options: Any) -> Any:
        rebuild_(self, weights)
        return original(self, weights, *args, **options)

    base.load = load
