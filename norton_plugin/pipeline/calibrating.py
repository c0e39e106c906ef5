"""The steps of ``compress`` that change the model by what images show, with the recipe's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from norton_plugin.calibration.batches import batch_size
from norton_plugin.calibration.positions import positions_of
from norton_plugin.distillation import DistillationReport, distill_
from norton_plugin.modules.duplication import duplicate
from norton_plugin.modules.run_state import preserved_state
from norton_plugin.modules.running import ForwardFunction, calibrated_by, distilled_by, run_model
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.removed import RemovedChannels

# Most images that channels are ranked on: more change little.
RANKING_IMAGES = 512


def fit_(
    model: nn.Module,
    compressed: nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any],
    *,
    recipe: Recipe,
    removed: Mapping[str, RemovedChannels],
    forward_fn: ForwardFunction | None,
    on_detail: Callable[[str], None] | None = None,
) -> CalibrationReport:
    """Fit the layers of a compressed model to what they see, in place.

    ``removed`` is what pruning took from them; ``on_detail`` is told which layer is next.
    """
    settings = recipe.calibration
    with preserved_state(compressed, fitted=True):
        return calibrate_(
            duplicate(model),  # models may keep something of a run
            compressed,
            calibration,
            example_inputs=example_inputs,
            forward_fn=forward_fn,
            images=settings.images,
            positions=settings.positions,
            seed=settings.seed,
            memory=settings.memory_bytes,
            norms=settings.batch_norm,
            admits=recipe.scope.admits,
            removed=removed,
            on_layer=None if on_detail is None else lambda done, count: on_detail(f"{done} of {count} layers"),
        )


def ranked_by_outputs(
    model: nn.Module,
    example_inputs: Any,
    calibration: Iterable[Any],
    recipe: Recipe,
    forward_fn: ForwardFunction | None,
    *,
    memory: int | None = None,
) -> OutputCriterion:
    """Return the criterion "output" of the dense model; ``memory`` bounds its moments, in bytes."""
    batches = take_batches(calibration, min(RANKING_IMAGES, recipe.calibration.images))
    return OutputCriterion(
        model,
        batches,
        example_inputs=example_inputs,
        forward_fn=forward_fn,
        positions=positions_of(recipe.calibration.positions, images=sum(map(batch_size, batches))),
        seed=recipe.calibration.seed,
        memory=memory,
    )


def finish_(
    model: nn.Module,
    compressed: nn.Module,
    calibration: Iterable[Any] | None,
    *,
    norms: bool,
    step: Callable[[str], None],
    recipe: Recipe,
    forward_fn: ForwardFunction | None,
    on_detail: Callable[[str], None] | None = None,
) -> tuple[int, DistillationReport | None]:
    """Do what the recipe asks for once the sizes of all layers are final, in place.

    Args:
        model: The dense model.
        compressed: Changed.
        calibration: Unlabelled batches; None for none, which changes nothing.
        norms: Whether statistics of norms are still those of before.
        step: Told the name of each step as it begins.
        recipe: What to do.
        forward_fn: Replaces the plain call.
        on_detail: Told how far it is.

    Returns:
        Images that BatchNorm statistics were re-estimated on, and what distillation did.
    """
    if calibration is None:
        return 0, None
    images, settings = 0, recipe.distillation
    if recipe.calibration.batch_norm and norms:
        step("calibrate")
        images = _reestimate_(compressed, calibration, recipe=recipe, forward_fn=forward_fn)
    if not settings.active:
        return images, None
    step("distill")
    with preserved_state(compressed, fitted=True):
        distilled = distill_(
            duplicate(model),
            compressed,
            calibration,
            call=partial(run_model, forward_fn=distilled_by(forward_fn)),
            admits=recipe.scope.admits,
            on_step=None if on_detail is None else lambda done, count: on_detail(f"{done} of {count} steps"),
            **settings.to_dict(),
        )
    return images, distilled


def _reestimate_(
    compressed: nn.Module, calibration: Iterable[Any], *, recipe: Recipe, forward_fn: ForwardFunction | None
) -> int:
    """Re-estimate BatchNorm statistics, in place; return the number of images."""
    call = partial(run_model, forward_fn=calibrated_by(forward_fn))
    with preserved_state(compressed, fitted=True):
        return reestimate_batch_norm_(compressed, calibration, call=call, images=recipe.calibration.images)
