"""Configs that build a compressed model without the hook."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import dump
from mmengine.runner.checkpoint import _load_checkpoint

from norton_plugin.artifact import write_whole
from norton_plugin.errors import ArtifactError, RecipeError
from norton_plugin.mm.configs.structure_text import structure_to_text
from norton_plugin.mm.patches.guard import stored
from norton_plugin.surgery.structure import Structure

CONFIG = "norton_config.py"
BUILDER = "norton_plugin.mm.CompressedModel"
_INITIAL = ("init_cfg", "pretrained")


def export_config(config: Config | Mapping[str, Any], structure: Structure) -> Config:
    """Return the config of a compressed model.

    ``model.type`` becomes the builder, which the registry imports by its dotted name; the model's own keys stay
    beside it, as tools read them. The structure is one line of JSON. Initial weights are dropped everywhere, and so is
    the hook: both would undo what the checkpoint brings.

    Args:
        config: Of the dense model, as trained.
        structure: As ``surgery.structure.diff`` made it.

    Returns:
        A new config; the one given is not changed.

    Raises:
        RecipeError: The model is not described by a dict.
    """
    plain = copy.deepcopy(config.to_dict() if isinstance(config, Config) else dict(config))
    model = plain.get("model")
    if not isinstance(model, dict) or "type" not in model:
        raise RecipeError(
            f"the config's model is {type(model).__name__}; expected a dict with a type, as in a config file"
        )
    if "norton" in model:
        raise RecipeError("the config's model is already a CompressedModel; give the config of the dense one")
    own_type = model["type"]
    own_type = own_type if isinstance(own_type, str) else f"{own_type.__module__}.{own_type.__qualname__}"
    _clear_initial_weights_(model)
    plain["model"] = {**model, "type": BUILDER, "norton": {"type": own_type, "structure": structure_to_text(structure)}}
    for hooks in ("default_hooks", "custom_hooks"):
        plain[hooks] = _without_hook(plain.get(hooks))
        if plain[hooks] is None:
            del plain[hooks]
    plain.update(load_from=None, resume=False)
    return Config(plain)


def write_config(config: Config | Mapping[str, Any], structure: Structure, folder: Path) -> Path | None:
    """Write ``norton_config.py``; None where the runner was given a model instead of a config of one.

    Args:
        config: As for ``export_config``.
        structure: Likewise.
        folder: Is made where it is absent.

    Raises:
        ArtifactError: The file cannot be written; one that was there before is untouched.
    """
    model = config.get("model")
    if not isinstance(model, Mapping) or "type" not in model or "norton" in model:
        return None
    return write_whole(folder / CONFIG, _content(export_config(config, structure), CONFIG))


def export_config_of_checkpoint(config: Path, checkpoint: Path, output: Path) -> dict[str, Any]:
    """Write the config of a compressed checkpoint.

    Args:
        config: File of the dense model's config, as trained.
        checkpoint: File that a run with NortonHook wrote.
        output: File to write; must not be there.

    Returns:
        What the checkpoint's ``meta['norton']`` holds: structure, hash and recipe.

    Raises:
        RecipeError: A file is absent or already there, or the config cannot be read.
        ArtifactError: The checkpoint cannot be read, its model is not compressed, or the file cannot be written.
    """
    for path, what in ((config, "config"), (checkpoint, "checkpoint")):
        if not path.is_file():
            raise RecipeError(f"the {what} {str(path)!r} is not there")
    if output.exists():
        raise RecipeError(f"{str(output)!r} is already there; give another name, or remove it")
    try:
        dense = Config.fromfile(config)
    except Exception as error:  # a config is a program
        raise RecipeError(f"config {str(config)!r} cannot be read ({type(error).__name__}: {error})") from error
    try:
        content = _load_checkpoint(str(checkpoint), map_location="cpu")
    except Exception as error:
        raise ArtifactError(f"{str(checkpoint)!r} is no checkpoint of mmengine ({type(error).__name__})") from error
    entry = stored(content)
    if entry is None or entry["structure"] is None:
        raise ArtifactError(
            f"{str(checkpoint)!r} holds no structure: its model is not compressed; give a checkpoint that a run with "
            "NortonHook wrote after compression"
        )
    write_whole(output, _content(export_config(dense, entry["structure"]), output.name))
    return entry


def _content(config: Config, name: str) -> bytes:
    """Return what a file of this name is to hold: Python, or what its suffix says."""
    suffix = Path(name).suffix
    text = config.pretty_text if suffix == ".py" else dump(config.to_dict(), file_format=suffix[1:])
    return str(text).encode()


def _clear_initial_weights_(config: Any) -> None:
    for value in config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ():
        _clear_initial_weights_(value)
    if isinstance(config, dict):
        config.update({key: None for key in _INITIAL if key in config})


def _without_hook(hooks: Any) -> Any:
    if isinstance(hooks, dict):
        return {name: hook for name, hook in hooks.items() if not _is_ours(hook)}
    return [hook for hook in hooks if not _is_ours(hook)] if isinstance(hooks, list | tuple) else hooks


def _is_ours(hook: Any) -> bool:
    kind = hook.get("type") if isinstance(hook, dict) else type(hook)
    return str(kind if isinstance(kind, str) else getattr(kind, "__name__", "")).rpartition(".")[2] == "NortonHook"
