"""The two steps of ``compress`` that see images, with the recipe's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from norton_plugin.calibration import CalibrationReport, calibrate_, reestimate_batch_norm_
from norton_plugin.modules.running import ForwardFunction, calibrated_by, run_model
from norton_plugin.recipe import Recipe


def fit_(
    model: nn.Module,
    compressed: nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any],
    *,
    recipe: Recipe,
    forward_fn: ForwardFunction | None,
    on_detail: Callable[[str], None] | None = None,
) -> CalibrationReport:
    """Fit the layers of a decomposed model to what they see, in place; ``on_detail`` is told which one is next."""
    settings = recipe.calibration
    return calibrate_(
        model,
        compressed,
        calibration,
        example_inputs=example_inputs,
        forward_fn=calibrated_by(forward_fn),
        images=settings.images,
        positions=settings.positions,
        seed=settings.seed,
        norms=settings.batch_norm,
        admits=recipe.scope.admits,
        on_layer=None if on_detail is None else lambda done, count: on_detail(f"{done} of {count} layers"),
    )


def reestimate_(
    compressed: nn.Module, calibration: Iterable[Any], *, recipe: Recipe, forward_fn: ForwardFunction | None
) -> int:
    """Re-estimate BatchNorm statistics, in place; return the number of images."""
    call = partial(run_model, forward_fn=calibrated_by(forward_fn))
    return reestimate_batch_norm_(compressed, calibration, call=call, images=recipe.calibration.images)
