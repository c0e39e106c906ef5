"""The unlabelled images that a copy of the model is shown while it is compressed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mmengine.runner import Runner
from torch import Tensor, nn

from norton_plugin.errors import RecipeError
from norton_plugin.mm.run import training_images
from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.pipeline import StepLog
from norton_plugin.recipe import Recipe

# Images are held with what two models need to go on with each: about 5 GB for a ResNet-50 on so many pixels.
_PIXELS = 256 * 224 * 224
# One batch in eight is held back to choose on, so there should be eight.
_BATCHES = 8


def shown_images(
    runner: Runner, model: nn.Module, recipe: Recipe, *, named: frozenset[str], log: StepLog | None
) -> tuple[Recipe, list[Tensor]]:
    """Draw training images through the model's data preprocessor, without augmentations that it makes by itself.

    As many as ``calibration.images`` says. Where the config does not name a number, no more than hold ``_PIXELS``
    together; ``positions`` is ``"auto"`` where it is not named. The run's random states stay as they are.

    Args:
        runner: Gives the training data.
        model: Unwrapped.
        recipe: With a budget, ``calibration.fit`` or ``distillation.passes``.
        named: Settings of ``calibration`` that the config names itself.
        log: Told how far it is.

    Returns:
        The recipe with the settings that hold, and the batches, (B, C, H, W) each.

    Raises:
        RecipeError: The training data give no images of this shape.
    """
    if log is not None:
        log("reading training images to calibrate on")
    settings, pixels = recipe.calibration, None if "images" in named else _PIXELS
    with preserved_random_state():
        training_images.rewind(runner)
        batches = list(_limited(_inputs(runner, model), images=settings.images, pixels=pixels))
    count = sum(map(len, batches))
    if not count:
        raise RecipeError("calibrate, budget and distillation need training images, and the training data hold none")
    positions = settings.positions if "positions" in named else "auto"
    # Where nothing is fitted to them, statistics of norms are re-estimated once every rank has the model.
    norms = settings.batch_norm and (settings.fit or recipe.distillation.active)
    settings = replace(settings, images=count, positions=positions, batch_norm=norms)
    height, width = batches[0].shape[-2:]
    runner.logger.info("NORTON: %d training images of about %d x %d are shown to the model", count, height, width)
    return replace(recipe, calibration=settings), _several(batches)


def _inputs(runner: Runner, model: nn.Module) -> Iterator[Tensor]:
    for batch in training_images.batches(runner, model, training=False):
        images = batch.get("inputs") if isinstance(batch, Mapping) else batch[0]
        if not isinstance(images, Tensor) or images.dim() != 4:
            raise RecipeError(
                f"calibrate, budget and distillation need images, 'inputs' of shape (B, C, H, W) behind the data "
                f"preprocessor, but it gives {_shape(images)}; use norton compress, or leave them out"
            )
        yield images


def _shape(images: Any) -> str:
    return f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"


def _limited(batches: Iterator[Tensor], *, images: int, pixels: int | None) -> Iterator[Tensor]:
    """Yield batches until they hold so many images or so many pixels; one image in any case."""
    least = 1
    for batch in batches:
        count = min(len(batch), images)
        if pixels is not None:
            own = batch.shape[-2] * batch.shape[-1]
            count = min(count, max(pixels // own, least))
            pixels -= count * own
        images, least = images - count, 0
        if count:
            yield batch[:count]
        if count < len(batch) or not images:
            return


def _several(batches: list[Tensor]) -> list[Tensor]:
    """Split batches where there are few of them."""
    parts = math.ceil(_BATCHES / len(batches))
    return [part for batch in batches for part in batch.split(math.ceil(len(batch) / parts))]
