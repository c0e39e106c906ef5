"""A model from an mmengine config and a checkpoint, whatever of the two says that it is compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner.checkpoint import _load_checkpoint

from norton_plugin.errors import ArtifactError, RecipeError
from norton_plugin.mm.classification.classifier import TimmClassifier
from norton_plugin.mm.configs.classifier import classifier_source
from norton_plugin.mm.configs.export import BUILDER
from norton_plugin.mm.configs.structure_text import structure_from_config
from norton_plugin.mm.patches.guard import stored
from norton_plugin.surgery.structure import apply_structure_
from norton_plugin.zoo import ModelSource, load_source
from norton_plugin.zoo.mmdet_classes import classes_of


def open_checkpoint(
    config: str | Path, checkpoint: str | Path, *, input_size: int | tuple[int, ...] | None = None
) -> ModelSource:
    """Build the model of a config and fill in a checkpoint's structure and weights.

    Of a ``TimmClassifier`` the classifier inside is returned, as its own source would give it.

    Args:
        config: Of the dense model, with the hook or without it, or ``norton_config.py`` of the compressed one.
        checkpoint: That a run of mmengine wrote, compressed or not.
        input_size: Of the example image; by default that of a classifier's data, and 320 pixels a side for a detector.

    Returns:
        The model with the structure and weights of the checkpoint, in evaluation mode, and what builds the dense one.

    Raises:
        RecipeError: The config cannot be read.
        ArtifactError: The checkpoint cannot be read, or does not belong to the config.
        SourceError: The config is not that of a detector or a ``TimmClassifier``.
    """
    whole, own, structure = _read(config)
    try:
        content = _load_checkpoint(str(checkpoint), map_location="cpu")
    except Exception as error:
        raise ArtifactError(f"{str(checkpoint)!r} is no checkpoint of mmengine ({type(error).__name__})") from error
    entry = stored(content)
    if entry is not None and entry["structure"] is not None:
        structure = entry["structure"]
    dense = own["model"] if own is not None else whole.get("model") or {}
    classifier = classifier_source(whole, dense, input_size=input_size)
    source = classifier or load_source(f"mmdet:{config}", input_size=input_size, kwargs=own)
    model = source.model if classifier is None else TimmClassifier(source.model)
    if structure is not None:
        apply_structure_(model, structure)
    state: Any = content.get("state_dict", content) if isinstance(content, Mapping) else None
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        what = "the structure of the checkpoint" if structure is not None else "the dense model of the config"
        raise ArtifactError(
            f"the weights of {str(checkpoint)!r} do not fit {what}: {' '.join(str(error).split())[:300]}"
        ) from error
    model.eval()
    if isinstance(model, TimmClassifier):
        return replace(source, model=model.model)
    return replace(source, forward_fn=_forward_of(source))


def _forward_of(source: ModelSource) -> Any:
    from norton_plugin.zoo import forward_of

    return forward_of(source.spec, source.model, source.example_inputs)


def _read(config: str | Path) -> tuple[Config, dict[str, Any] | None, Any]:
    """Return a config, and of an exported one what builds the dense model, and the structure; else None and None."""
    try:
        whole = Config.fromfile(config, import_custom_modules=False)
    except Exception as error:  # a config is a program
        raise RecipeError(f"config {str(config)!r} cannot be read ({type(error).__name__}: {error})") from error
    model = whole.get("model")
    if not isinstance(model, Mapping) or model.get("type") != BUILDER:
        return whole, None, None
    plain = model.to_dict()  # type: ignore[attr-defined]
    norton = plain.pop("norton")
    dense = {**plain, "type": norton["type"]}
    return whole, {"model": dense, "classes": classes_of(whole, dense)}, structure_from_config(norton["structure"])
