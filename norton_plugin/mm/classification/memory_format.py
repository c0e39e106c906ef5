"""Training in channels-last memory format: whether a model runs so, and its weights while it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from norton_plugin.mm.classification.classifier import TimmClassifier
from norton_plugin.mm.classification.datasets import first_batch
from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.modules.running import traceable


def runs_channels_last(classifier: TimmClassifier, data: Dataset[Any]) -> bool:
    """Tell whether a classifier runs on an image in channels-last format.

    One that takes views of maps, as ``x.view(len(x), -1)``, does not.

    Args:
        classifier: Left as it is.
        data: Not empty; its first image is tried. Random numbers that this takes are given back.
    """
    with preserved_random_state(), traceable(classifier), channels_last_weights(classifier.model, wanted=True):
        images = classifier.data_preprocessor(first_batch(data), False)["inputs"]
        home = next((p.device for p in classifier.parameters()), images.device)
        try:
            classifier.model(images.to(home).contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return False
    return True


@contextmanager
def channels_last_weights(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """While entered, keep weights of four axes in channels-last format; where they were not, they go back."""
    weights = [p for p in model.parameters() if p.dim() == 4]
    change = wanted and not all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    if change:
        _convert_(model, torch.channels_last)
    try:
        yield
    finally:
        if change:
            _convert_(model, torch.contiguous_format)


def _convert_(model: nn.Module, layout: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
