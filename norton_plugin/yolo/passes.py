"""The ways in which Ultralytics runs one of its models, as a trace has to see them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# What its exporter, and it alone, calls in place of `forward`: it reads widths that `forward` does not.
_EXPORTED = "forward_split"
# Maps of the neck, in the dict of raw outputs.
_NECK = "feats"


def prediction(model: nn.Module, images: Any) -> Any:
    """Run a model and return what it predicts, without the maps of its neck that evaluation returns beside it.

    No code reads the values of those maps, losses ask for their sizes alone; as outputs they would keep all channels.

    Args:
        model: Of Ultralytics.
        images: (B, C, H, W).
    """
    return _without_neck(model(images))


def _without_neck(output: Any) -> Any:
    if isinstance(output, dict):
        return {name: _without_neck(value) for name, value in output.items() if name != _NECK}
    return tuple(_without_neck(value) for value in output) if isinstance(output, tuple | list) else output


def every_prediction(model: nn.Module, images: Any) -> Any:
    """Run a model as it evaluates and as it is exported; return both predictions.

    Args:
        model: Of Ultralytics.
        images: (B, C, H, W).
    """
    plain = prediction(model, images)
    with _as_exported(model):
        return plain, prediction(model, images)


every_prediction.counted = prediction  # type: ignore[attr-defined]  # MACs are those of one pass


@contextmanager
def _as_exported(model: nn.Module) -> Iterator[None]:
    """Let all layers that have another way of running for the export run in that way."""
    layers = [module for module in model.modules() if hasattr(module, _EXPORTED) and "forward" not in vars(module)]
    try:
        for layer in layers:
            vars(layer)["forward"] = getattr(layer, _EXPORTED)
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
