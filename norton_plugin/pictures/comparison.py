"""A dense and a compressed model on the same images: what each finds, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from norton_plugin.deploy import LatencyRatio, compare_latency, prepare
from norton_plugin.pictures.drawing import draw
from norton_plugin.pictures.sheet import Tile, draw_sheet
from norton_plugin.zoo import Preprocessing
from norton_plugin.zoo.prediction import Prediction, class_names, predict


@dataclass(frozen=True)
class Comparison:
    """Outcome of a comparison.

    Attributes:
        frames: One ``PIL.Image`` for each image: dense on the left, compressed on the right.
        found: For each image what the dense and what the compressed model found.
        latency: Of the two, on the first image, measured in turn.
    """

    frames: tuple[Any, ...]
    found: tuple[tuple[Prediction, Prediction], ...]
    latency: LatencyRatio


class _Whole(nn.Module):
    """A model together with what is done to an image before it and to its outputs after it."""

    def __init__(self, model: nn.Module, spec: Mapping[str, Any], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.spec = spec
        self.preprocessing = preprocessing

    def forward(self, picture: Tensor) -> Prediction:
        """Map uint8 (C, H, W) to what is found there."""
        return predict(self.model, picture, self.spec, self.preprocessing)


def compare_models(
    dense: nn.Module,
    compressed: nn.Module,
    pictures: Sequence[Tensor],
    spec: Mapping[str, Any],
    preprocessing: Preprocessing,
    *,
    least_score: float = 0.5,
    rounds: int = 9,
) -> Comparison:
    """Run both models on images, and draw what they find beside each other, with times and rates.

    Both run as they would be delivered: norms folded, in the faster memory format, and the blocks of the compressed one
    lowered to ordinary convolutions, each in the form that is fastest here.

    Args:
        dense: The original, in evaluation mode.
        compressed: Left as it is.
        pictures: One or more, uint8 (C, H, W), as of ``zoo.prediction.picture_of``.
        spec: Of the source.
        preprocessing: Of the model.
        least_score: Objects below it are not drawn.
        rounds: Timed calls of each model.

    Raises:
        SourceError: The models return neither scores of classes nor objects.
    """
    first = pictures[0]
    whole = (_Whole(model, spec, preprocessing) for model in (dense, compressed))
    models = [prepare(model, (first,), forms="measured").model for model in whole]
    latency = compare_latency([lambda: models[0](first), lambda: models[1](first)], rounds=rounds)
    names = class_names(spec)
    frames, found = [], []
    for picture in pictures:
        pair = models[0](picture), models[1](picture)
        found.append(pair)
        tiles = [Tile(*draw(picture, each.above(least_score), names)) for each in pair]
        frames.append(draw_sheet([tiles], _headings(latency)))
    return Comparison(tuple(frames), tuple(found), latency)


def _headings(latency: LatencyRatio) -> list[str]:
    told = []
    for name, seconds, ratio in zip(("dense", "compressed"), latency.seconds, latency.ratios, strict=True):
        faster = "" if name == "dense" else f", {ratio:.2f} x dense"
        told.append(f"{name}: {1e3 * seconds:.1f} ms, {1 / seconds:.1f} FPS{faster}")
    return told
