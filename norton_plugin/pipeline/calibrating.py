"""The two steps of ``compress`` that see images, with the recipe's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from norton_plugin.calibration import (
    CalibrationReport,
    OutputCriterion,
    calibrate_,
    reestimate_batch_norm_,
    take_batches,
)
from norton_plugin.modules.running import ForwardFunction, run_model
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.removed import RemovedChannels

# Most images that channels are ranked on: more change little.
RANKING_IMAGES = 512


def fit_(
    model: nn.Module,
    compressed: nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any],
    recipe: Recipe,
    removed: Mapping[str, RemovedChannels],
    forward_fn: ForwardFunction | None,
) -> CalibrationReport:
    """Fit the layers of a compressed model to what they see, in place; ``removed``: what pruning took from them."""
    settings = recipe.calibration
    return calibrate_(
        model,
        compressed,
        calibration,
        example_inputs=example_inputs,
        forward_fn=forward_fn,
        images=settings.images,
        positions=settings.positions,
        seed=settings.seed,
        norms=settings.batch_norm,
        admits=recipe.scope.admits,
        removed=removed,
    )


def ranked_by_outputs(
    model: nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any],
    recipe: Recipe,
    forward_fn: ForwardFunction | None,
) -> OutputCriterion:
    """Return the criterion "output" of the dense model."""
    return OutputCriterion(
        model,
        take_batches(calibration, min(RANKING_IMAGES, recipe.calibration.images)),
        example_inputs=example_inputs,
        forward_fn=forward_fn,
        positions=recipe.calibration.positions,
        seed=recipe.calibration.seed,
    )


def reestimate_(
    compressed: nn.Module, calibration: Iterable[Any], *, recipe: Recipe, forward_fn: ForwardFunction | None
) -> int:
    """Re-estimate BatchNorm statistics, in place; return the number of images."""
    call = partial(run_model, forward_fn=forward_fn)
    return reestimate_batch_norm_(compressed, calibration, call=call, images=recipe.calibration.images)
