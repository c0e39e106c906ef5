"""The classifier that a config of ``TimmClassifier`` names, as any source of one is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from norton_plugin.zoo import ModelSource, Preprocessing, load_source
from norton_plugin.zoo.mmdet_classes import datasets_of

_WEIGHTS = ("pretrained", "checkpoint")  # which a checkpoint brings


def classifier_source(
    config: Mapping[str, Any], model: Mapping[str, Any], *, input_size: int | Sequence[int] | None = None
) -> ModelSource | None:
    """Build the dense classifier inside of a ``TimmClassifier``.

    Args:
        config: The whole config; its data tell how images are prepared.
        model: Its model, dense.
        input_size: Of the example image, in place of that of the data.

    Returns:
        The classifier with fresh weights; None where the model is something else, such as a detector.
    """
    given = model.get("model")
    of_source = isinstance(given, str) or (isinstance(given, Mapping) and "spec" in given)
    if model.get("type") != "TimmClassifier" or not of_source:
        return None
    arguments: dict[str, Any] = {"spec": given} if isinstance(given, str) else dict(given)  # type: ignore[arg-type]
    arguments = {name: value for name, value in arguments.items() if name not in _WEIGHTS}
    named = (data.get("preprocessing") for data in datasets_of(config))
    prepared = next((found for found in named if isinstance(found, Mapping)), {})
    size = prepared.get("input_size") if input_size is None else input_size
    source = load_source(**arguments | ({} if size is None else {"input_size": size}))
    known = {field.name for field in fields(Preprocessing)} - {"input_size", "mean", "std"}
    changes = {name: value for name, value in prepared.items() if name in known}
    normalised = model.get("data_preprocessor") or {}
    changes |= {name: tuple(normalised[name]) for name in ("mean", "std") if normalised.get(name) is not None}
    return replace(source, preprocessing=replace(source.preprocessing, **changes))
