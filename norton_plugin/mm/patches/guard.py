"""Compressed weights never enter a model of another structure unnoticed.

mmengine loads every checkpoint with ``strict=False``: a dense model that is given a compressed checkpoint keeps its
random weights wherever shapes differ, with no more than a warning. All ways into a model (``Runner``,
``init_detector``, inferencers) go through one private function of mmengine, ``_load_checkpoint_to_model``. Importing
:mod:`norton_plugin.mm` puts a check in front of it, which looks at ``checkpoint['meta']['norton']`` and at nothing
else; checkpoints without that entry pass as before.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import mmengine.infer.infer
import mmengine.runner.checkpoint
import mmengine.runner.runner
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import ArtifactError, RecipeError
from norton_plugin.mm.runner.migration import unwrap
from norton_plugin.mm.runner.optimizer import FactorDecay
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.geometry import geometry, kind_of_block
from norton_plugin.surgery.structure import Structure, structure_hash

KEY = "norton"
_FUNCTION = "_load_checkpoint_to_model"
# The function, and the two modules that imported it by name.
_HOLDERS = (mmengine.runner.checkpoint, mmengine.runner.runner, mmengine.infer.infer)
_FORMS = ("form", "training_form")
_NAMES = {
    "block": "CPDBlock of rank {rank}",
    "spatial": "SpatialSVDBlock of rank {rank}",
    "linear": "CPDLinear of {components} components",
}
# Settings of a decomposition that change the factors alone.
_HOW = ("restarts", "sweeps", "tolerance", "seed")
# A structure is written into configs, which are Python. As one text (configs/structure_text.py) none of it can become
# code; this refuses it before that, for mmengine puts quotes around keys of dicts as they are, and replaces {{...}} in
# the text of a config before it runs it.
_UNSAFE = frozenset("'\"\\{}")


def stored(checkpoint: Any) -> dict[str, Any] | None:
    """Return what this package wrote into a checkpoint, or None.

    Args:
        checkpoint: What a file holds that may come from anyone.

    Raises:
        ArtifactError: It is damaged, or holds text that no structure has.
    """
    meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
    entry = meta.get(KEY) if isinstance(meta, Mapping) else None
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or "structure" not in entry:
        raise ArtifactError(f"meta[{KEY!r}] of the checkpoint is damaged: it names no structure")
    if entry["structure"] is not None:
        _check_structure(entry["structure"], entry.get("structure_hash"))
    return dict(entry)


def _check_structure(structure: Any, expected: Any) -> None:
    try:
        sound = structure_hash(structure) == expected
    except (TypeError, ValueError, RecursionError):  # it is no JSON
        sound = False
    if not sound:
        raise ArtifactError(f"meta[{KEY!r}] of the checkpoint is damaged: the structure does not match its hash")
    if not isinstance(structure, Mapping) or not isinstance(structure.get("modules"), list):
        raise ArtifactError(f"meta[{KEY!r}] of the checkpoint is damaged: the structure lists no modules")
    odd = next((text for text in _texts(structure) if _UNSAFE.intersection(text) or not text.isprintable()), None)
    if odd is not None:
        raise ArtifactError(
            f"meta[{KEY!r}] of the checkpoint holds the text {odd[:80]!r}, which is no name of a module or a setting; "
            "do not use this file"
        )


def _texts(structure: Any) -> Iterator[str]:
    """Return all strings of JSON, keys included."""
    pending = [structure]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            pending += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            pending += value


def mismatch(model: nn.Module, structure: Structure) -> str | None:
    """Return the first difference between a model and the structure it should have, in words; None where there is none.

    Args:
        model: Unwrapped.
        structure: As ``surgery.structure.diff`` made it.
    """
    found = geometry(model)
    for entry in structure["modules"]:
        name = entry["names"][0]
        own = found.get(name)
        if own is None:
            return f"it has no module {name!r}"
        kind = kind_of_block(entry)
        if kind is not None:
            if kind not in own:
                return f"{name} is no {_NAMES[kind].format(**entry[kind])}"
            for key in sorted({*entry[kind], *own[kind]}.difference(_FORMS)):
                value, other = entry[kind].get(key), own[kind].get(key)
                if value != other:
                    return f"{name} has {key} {other}, not {value}"
            continue
        for tensor, shape in entry["resize"].items():
            if kind_of_block(own) is not None or own["shapes"].get(tensor) != shape:
                return f"{name}.{tensor} has shape {own.get('shapes', {}).get(tensor)}, not {shape}"
        if entry.get("selected") != own.get("selected"):
            return f"{name} returns other channels"
    return None


def wrong_places(model: nn.Module, state: Mapping[str, Any]) -> str | None:
    """Say which block's places of filters a state dict does not give, in words; None where it gives them all.

    mmengine would warn, and go on with other places: every filter behind them would be another one.

    Args:
        model: Unwrapped, of the state dict's structure.
        state: Names and tensors, as they are in the file.
    """
    for name, block in model.named_modules(remove_duplicate=False):
        if not isinstance(block, CPDBlock) or block.slot is None:
            continue
        key = f"{name}.slot"
        given = state.get(key, state.get(f"module.{key}"))  # of a wrapped model, which mmengine unwraps
        if not isinstance(given, Tensor):
            return f"it has no {key}"
        problem = block.wrong_places(given)
        if problem:
            return f"{key} {problem}"
    return None


def check_settings(
    entry: Mapping[str, Any], recipe: Recipe, *, factor_decay: FactorDecay | None, resumed: bool
) -> None:
    """Refuse to train on from a checkpoint whose structure other settings decided.

    Settings that only say how well or how long to compute (restarts, images, time limits) may differ.

    Args:
        entry: Of the checkpoint.
        recipe: Of this run.
        factor_decay: Of this run; it decides about the optimizer's groups, so it counts where ``resumed``.
        resumed: Whether the optimizer's state is taken over as well.

    Raises:
        RecipeError: Every difference is named.
    """
    own: dict[str, Any] = json.loads(json.dumps(recipe.to_dict()))
    # Settings that came after the checkpoint have their defaults, as in a recipe file.
    given = entry.get("recipe")
    recorded: dict[str, Any] = json.loads(json.dumps(Recipe.from_dict(given).to_dict())) if given else dict(own)
    own, recorded = _of_structure(own), _of_structure(recorded)
    if resumed and "factor_decay" in entry:
        own, recorded = own | {"factor_decay": factor_decay}, recorded | {"factor_decay": entry["factor_decay"]}
    if recorded != own:
        raise RecipeError(
            f"the checkpoint was compressed with another recipe ({', '.join(_differences(recorded, own))}); give "
            "NortonHook the checkpoint's recipe, start from the dense weights, or, to compress the checkpoint's model "
            "once more by this recipe, set again=True and leave resume out"
        )


def _of_structure(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a recipe that decide what becomes of a model's layers."""
    kept: dict[str, Any] = {
        section: dict(recipe[section]) for section in ("scope", "decomposition", "budget", "pruning")
    }
    for name in _HOW:
        kept["decomposition"].pop(name)
    return kept


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*there, *here}):
        first, second = there.get(key), here.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            lines += _differences(first, second, f"{prefix}{key}.")
        elif first != second:
            lines.append(f"{prefix}{key} {first!r} there, {second!r} here")
    return lines


def check(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a compressed checkpoint for a model of another structure.

    Raises:
        ArtifactError: The first difference is named; or places of filters that the structure does not have.
    """
    entry = stored(checkpoint)
    if entry is None or entry["structure"] is None:
        return
    difference = mismatch(unwrap(model), entry["structure"])
    if difference is not None:
        raise ArtifactError(
            f"the checkpoint holds a compressed model, and the model at hand is another one: {difference}. Use the "
            "exported config (norton_config.py in the work dir), or add the hook to yours: "
            "default_hooks.norton.type=norton_plugin.NortonHook with the recipe of the training run"
        )
    state = checkpoint.get("state_dict")
    problem = wrong_places(unwrap(model), state) if isinstance(state, Mapping) else None
    if problem is not None:
        raise ArtifactError(f"the checkpoint's weights do not belong to its structure: {problem}; the file is damaged")


def install() -> None:
    """Put the check in front of mmengine's function; a second call changes nothing."""
    original = getattr(mmengine.runner.checkpoint, _FUNCTION)
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def checked(model: nn.Module, checkpoint: Any, *args: Any, **options: Any) -> Any:
        if isinstance(checkpoint, Mapping):
            check(model, checkpoint)
        return original(model, checkpoint, *args, **options)

    for holder in _HOLDERS:
        setattr(holder, _FUNCTION, checked)
