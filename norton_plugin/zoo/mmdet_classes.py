"""Names of the classes that a detector finds, from the data set that its config names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.registry import DefaultScope

_LOADERS = ("test_dataloader", "val_dataloader", "train_dataloader")


def classes_of(config: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes of a config's data.

    Args:
        config: The whole config.
        model: Its model.

    Returns:
        The names in the order of their numbers; empty where the config does not tell them, or where their number is
        none of the model's ``num_classes``.
    """
    for dataset in datasets_of(config):
        found = _named(dataset)
        if found:
            return found if len(found) in set(_numbers(model)) else []
    return []


def datasets_of(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the data sets of a config, those to test on first, each before those that it wraps."""
    for loader in _LOADERS:
        yield from _datasets((config.get(loader) or {}).get("dataset"))


def _datasets(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a data set and those that it wraps, the outermost first."""
    if not isinstance(config, Mapping):
        return
    yield config
    for wrapped in (config.get("dataset"), *(config.get("datasets") or ())):
        yield from _datasets(wrapped)


def _named(dataset: Mapping[str, Any]) -> list[str]:
    """Return the classes that a data set is given, or those of its type."""
    from mmdet.registry import DATASETS

    own, kind = dataset.get("metainfo"), dataset.get("type")
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope("mmdet"):
            kind = DATASETS.get(kind)
    for info in (own, getattr(kind, "METAINFO", None)):
        names = info.get("classes") if isinstance(info, Mapping) else None
        names = [names] if isinstance(names, str) else names
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return list(names)
    return []


def _numbers(model: Any) -> Iterator[int]:
    """Yield every ``num_classes`` of a model."""
    if isinstance(model, Mapping):
        if isinstance(model.get("num_classes"), int):
            yield model["num_classes"]
        for value in model.values():
            yield from _numbers(value)
    elif isinstance(model, list | tuple):
        for value in model:
            yield from _numbers(value)
