"""Class activation maps of a dense and of compressed models, by the ``grad-cam`` library, and how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from norton_plugin.errors import MissingExtraError, SourceError

Map = NDArray[np.float32]


@dataclass(frozen=True)
class CamModel:
    """One model's view of one image.

    Attributes:
        map: (H, W), in [0, 1]: where it looks for the class that the dense model sees.
        best: The class it sees itself.
        share: Its probability of that class, in [0, 1].
        correlation: Pearson's, with the dense model's map; None where one of the two is the same everywhere.
    """

    map: Map
    best: int
    share: float
    correlation: float | None


@dataclass(frozen=True)
class CamImage:
    """One image, as every model sees it.

    Attributes:
        image: (H, W, 3) in [0, 1], as the models get it, before normalisation.
        target: The class that the dense model sees; all maps are of it.
        models: The dense model's view first.
    """

    image: Map
    target: int
    models: tuple[CamModel, ...]


def last_map(model: nn.Module, inputs: Tensor) -> str:
    """Return the name of the last module that makes a map: what most papers take for class activation maps.

    Args:
        model: A classifier, in evaluation mode.
        inputs: (1, C, H, W).

    Raises:
        SourceError: No module that runs once returns a map of more than one place.
    """
    calls: dict[str, list[bool]] = {}

    def note(name: str, *arguments: Any) -> None:
        output = arguments[-1]
        is_map = isinstance(output, Tensor) and output.dim() == 4 and output.shape[-2] * output.shape[-1] > 1
        calls.setdefault(name, []).append(is_map)

    handles = [m.register_forward_hook(partial(note, name)) for name, m in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    # in the order in which modules first return; one that runs twice has two outputs, and only one of them is last
    found = [name for name, maps in calls.items() if maps == [True]]
    if not found:
        raise SourceError(
            "no layer of the model returns a map (batch, channels, height, width), so there is nothing to draw; "
            "name one with --layer if it has another form"
        )
    return found[-1]


def activation_maps(models: Sequence[nn.Module], inputs: Tensor, image: Map, *, layer: str) -> CamImage:
    """Return the maps of all models on one image, for the class that the first one sees.

    Args:
        models: The dense one first; in evaluation mode. Their parameters are set to need gradients.
        inputs: (1, C, H, W), normalised.
        image: As of ``CamImage``.
        layer: Dotted name of the module whose output is looked at.

    Raises:
        MissingExtraError: grad-cam is not installed.
        SourceError: A model has no such layer, or its output cannot be drawn.
    """
    cam, target_of = _library()
    with torch.no_grad():
        scores = [model(inputs).softmax(1)[0] for model in models]
    target = int(scores[0].argmax())
    maps: list[Map] = []
    for model in models:
        model.requires_grad_(True)
        with cam(model=model, target_layers=[_layer(model, layer)]) as run:
            try:
                maps.append(run(input_tensor=inputs, targets=[target_of(target)])[0])
            except Exception as error:  # of shapes that the library does not expect
                raise SourceError(f"the output of {layer} is no map that can be drawn: {error}") from error
    views = [
        CamModel(own, int(score.argmax()), float(score.max()), correlation(maps[0], own))
        for own, score in zip(maps, scores, strict=True)
    ]
    return CamImage(image, target, tuple(views))


def correlation(first: Map, second: Map) -> float | None:
    """Return Pearson's correlation of two maps, None where one of them is the same everywhere."""
    a, b = (each.astype(np.float64).ravel() - each.mean(dtype=np.float64) for each in (first, second))
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 1e-12 else None


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise SourceError(f"a model has no layer {name!r}; 'norton inspect' lists those that compute") from error


def _library() -> tuple[Any, Callable[[int], Any]]:
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise MissingExtraError("grad-cam is not installed; run: pip install 'norton-plugin[cam]'") from error
    return GradCAM, ClassifierOutputTarget
