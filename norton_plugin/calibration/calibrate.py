"""Fit a compressed model to the dense one on unlabelled images, and keep of it what helps on others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from norton_plugin.blocks import all_in_form
from norton_plugin.calibration.batches import batch_size, split_batches
from norton_plugin.calibration.divergence import Comparison
from norton_plugin.calibration.fitting import LayerFit
from norton_plugin.calibration.layers import layers_to_fit
from norton_plugin.calibration.lockstep import trace_layers
from norton_plugin.calibration.relative_norm import correct_batch_norm_
from norton_plugin.calibration.ridge import ENOUGH
from norton_plugin.calibration.sequential import SequentialPass
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import (
    ForwardFunction,
    calibrated_by,
    distilled_by,
    evaluating,
    run_model,
    traceable,
)
from norton_plugin.surgery.removed import RemovedChannels


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did.

    Attributes:
        layers: Fitted layers, in the order of their calls.
        left: (name, reason) of layers that were considered and left as they were.
        chosen: What is kept: "plain" (nothing helped), "fitted", or "fitted, norms corrected".
        images: Images that layers were fitted to.
        held_back: Images that the choice was made on.
        divergence: On those, how far the outputs are from the dense model's (`divergence.divergence`), by stage:
            "plain", "fitted" and "fitted, norms corrected".
        seconds: Wall-clock time.
        few_samples: What to say where layers saw few samples, with the number of images that would do; empty where all
            saw enough.
    """

    layers: tuple[LayerFit, ...]
    left: tuple[tuple[str, str], ...]
    chosen: str
    images: int
    held_back: int
    divergence: dict[str, float]
    seconds: float
    few_samples: str = ""


def take_batches(batches: Iterable[Any], images: int) -> list[Any]:
    """Return the first batches that hold this many images together.

    Raises:
        SurgeryError: There is none.
    """
    taken, seen = [], 0
    for batch in batches:
        taken.append(batch)
        seen += batch_size(batch)
        if seen >= images:
            break
    if seen == 0:
        raise SurgeryError("the calibration data holds no image; give some hundred images, or no calibration data")
    return taken


def calibrate_(
    dense: nn.Module,
    compressed: nn.Module,
    batches: Iterable[Any],
    *,
    example_inputs: Any,
    forward_fn: ForwardFunction | None = None,
    images: int = 1024,
    positions: int | str = 32,
    seed: int = 0,
    norms: bool = True,
    admits: Callable[[str], bool] = lambda name: True,
    removed: Mapping[str, RemovedChannels] | None = None,
    memory: int | None = None,
    on_layer: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Fit factors, and layers that stayed dense, to what they see in the compressed model; in place.

    Layer after layer gets the weight whose outputs are nearest to those of the dense model, given the errors of the
    layers before it (docs/method.md, section 3). No label is used, and no gradient. Of every eight batches one is held
    back; what does not bring the outputs nearer to the dense model's there is undone.

    Args:
        dense: The dense model; it is run and left as it is.
        compressed: Changed: factors and weights, biases, running statistics of norms. Shapes stay. It may have lost
            channels.
        batches: Unlabelled images, called like ``example_inputs``.
        example_inputs: Shows the order of the layers.
        forward_fn: ``(model, inputs) -> output`` in place of the plain call; by its attribute ``calibrated`` images are
            run, and by ``distilled`` the two models are compared, where it has them.
        images: Most images to use; all of them are held in memory.
        positions: Output positions read of every image, or ``"auto"`` (`positions.positions_of_layer`).
        seed: Of the positions; equal seeds give equal results.
        norms: Also try the correction of BatchNorm statistics against the dense model's.
        admits: Tells of a dotted name whether a layer that stayed dense may be changed.
        removed: What pruning took from which layer (``PruningReport.removed``): what reads the channels that stayed
            takes over what the others carried.
        memory: Most bytes that the moments of a layer, what is computed of them, and what both models hold to go on
            from a layer may take together; what is more of the latter lies on disk meanwhile (in TMPDIR, or /var/tmp).
            None for no limit of the former, and half of what is available for the latter.
        on_layer: Told how many layers of how many are done.

    Returns:
        What was done.

    Raises:
        SurgeryError: No image, a model that does not run on them, or values that are not finite (the layer is named);
            the compressed model is as it was then.
        RecipeError: The memory does not suffice; the least that would do is said.
    """
    start = time.perf_counter()
    given = take_batches(batches, images)
    fitted_on, held_back = split_batches(given)
    compared = partial(run_model, forward_fn=distilled_by(forward_fn))
    forward_fn = calibrated_by(forward_fn)
    call = partial(run_model, forward_fn=forward_fn)
    before = _state(compressed)
    layers, left = layers_to_fit(dense, compressed, admits, removed)
    try:
        # All forms compute the same, and few calls of large batches run fastest with weights that are rebuilt.
        with traceable(dense), evaluating(compressed), all_in_form(compressed, "dense"):
            comparison = Comparison(dense, held_back or given, compared)
            found = {"plain": comparison.of(compressed)}
            places = [
                trace_layers(model, own, partial(run_model, model, example_inputs, forward_fn))
                for model, own in ((dense, [x.dense for x in layers]), (compressed, [x.own for x in layers]))
            ]
            run = SequentialPass(dense, compressed, fitted_on, call=call, positions=positions, seed=seed, memory=memory)
            fits, unfitted = run.run_(layers, *places, on_layer=on_layer)
            found["fitted"] = comparison.of(compressed)
            states = {"plain": before, "fitted": _state(compressed)}
            settings = {"example_inputs": example_inputs, "call": call, "forward_fn": forward_fn, "removed": removed}
            if norms and correct_batch_norm_(dense, compressed, fitted_on, **settings, memory=memory):
                name = "fitted, norms corrected"
                found[name], states[name] = comparison.of(compressed), _state(compressed)
        chosen = min(found, key=lambda stage: (found[stage] != found[stage], found[stage]))  # NaN is worst
        _restore(compressed, states[chosen])
    except BaseException:
        _restore(compressed, before)
        raise
    return CalibrationReport(
        layers=tuple(fits),
        left=tuple(sorted((left | unfitted).items())),
        chosen=chosen,
        images=sum(map(batch_size, fitted_on)),
        held_back=sum(map(batch_size, held_back)),
        divergence=found,
        seconds=time.perf_counter() - start,
        few_samples=_few_samples(fits, images=sum(map(batch_size, fitted_on)), positions=positions),
    )


def _few_samples(fits: Sequence[LayerFit], *, images: int, positions: int | str) -> str:
    """Say how many images would do, where layers saw too few for the numbers that they read."""
    few = [fit for fit in fits if fit.samples < ENOUGH * fit.inputs]
    if not few:
        return ""
    worst = min(few, key=lambda fit: fit.samples / fit.inputs)
    wanted = math.ceil(images * ENOUGH * worst.inputs / worst.samples)
    more = "" if positions == "auto" else ", or more positions of each (in a recipe, calibration.positions: auto)"
    return (
        f"{len(few)} of {len(fits)} layers saw fewer than {ENOUGH} samples for each number that they read, the fewest "
        f"{worst.name}, {worst.samples} samples of {worst.inputs} numbers; these layers were held closer to the dense "
        f"weights. About {wanted} images would do{more}"
    )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}


def _restore(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, tensor in _tensors(model).items():
        if name in state:  # some models make buffers while they run
            tensor.data.copy_(state[name])
