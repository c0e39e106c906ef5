"""Where the weights of a run's model come from: random ones are not worth compressing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.runner import Runner

_PRETRAINED = ("Pretrained", "PretrainedInit")


def warn_of_random_weights(runner: Runner) -> bool:
    """Warn in the log where a model is to be compressed before anything trained or loaded its weights.

    Nothing is said where the run loaded a checkpoint or trained for some steps, nor of a model that was handed to the
    Runner as an object: its owner may have filled it.

    Args:
        runner: Just before its model is compressed.

    Returns:
        Whether a warning was given.
    """
    config = runner.cfg.get("model")
    if getattr(runner, "_load_from", None) or runner.iter > 0 or not isinstance(config, Mapping):
        return False
    places = list(_pretrained_places(config))
    if "" in places:
        return False
    if places:
        named = ", ".join(dict.fromkeys(places))
        runner.logger.warning(
            "NORTON: no load_from is given: only %s starts from trained weights (its config's own), all else is "
            "compressed with random ones; give load_from=TRAINED.pth, or at_epoch=N to train first",
            named,
        )
        return True
    runner.logger.warning(
        "NORTON: no load_from is given: the model has random weights, and compressing them is of no use; give "
        "load_from=TRAINED.pth, or at_epoch=N to train first"
    )
    return True


def _pretrained_places(config: Any, place: str = "") -> Iterator[str]:
    """Yield the dotted places of a model's config that name trained weights; "" is the whole model."""
    if isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from _pretrained_places(value, f"{place}.{index}".lstrip("."))
    if not isinstance(config, Mapping):
        return
    initial = config.get("init_cfg")
    for each in initial if isinstance(initial, list | tuple) else [initial]:
        kind = each.get("type") if isinstance(each, Mapping) else None
        if getattr(kind, "__name__", kind) in _PRETRAINED:
            yield place
    if config.get("pretrained") or config.get("checkpoint"):
        yield place
    for key, value in config.items():
        if key != "init_cfg":
            inner = "" if not place and key == "model" else f"{place}.{key}".lstrip(".")
            yield from _pretrained_places(value, inner)
