"""The main job: a model in, a compressed model and a report out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.budget import ModelCost, count_cost
from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.checks import check_model, check_patterns, check_recipe
from norton_plugin.errors import SurgeryError
from norton_plugin.memory import Step, memory_errors_explained
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.decompose import decompose_
from norton_plugin.surgery.model_copy import copy_model, counterparts
from norton_plugin.surgery.prune import prune_
from norton_plugin.surgery.random_state import preserved_random_state
from norton_plugin.surgery.report import (
    DecomposedLayer,
    DecompositionReport,
    PruningReport,
    Skipped,
    blocking,
    summary,
)
from norton_plugin.surgery.running import ForwardFunction, run_model
from norton_plugin.surgery.structure import Structure, diff, geometry

NO_DECOMPOSITION = DecompositionReport((), ())
NO_PRUNING = PruningReport((), ())


@dataclass(frozen=True)
class LayerReport:
    """One layer before and after.

    Attributes:
        name: Its first dotted name.
        kind: Class of the module now.
        macs_before: MACs of one pass over the example, calls of a shared layer added up.
        macs_after: The same afterwards.
        parameters_before: Numbers in the layer's own parameters.
        parameters_after: The same afterwards.
        rank: R, None where the layer is dense.
        nmse: Mean NMSE of its filters at decomposition, None where it is dense.
        kept: Share of its output channels that stayed, in (0, 1].
    """

    name: str
    kind: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    rank: int | None
    nmse: float | None
    kept: float


@dataclass(frozen=True)
class CompressionReport:
    """All that ``compress`` did.

    Attributes:
        macs_before: MACs of one pass over the example inputs (batch included).
        macs_after: The same of the compressed model, CPDBlocks in their three-convolution form.
        parameters_before: Numbers in the model's parameters.
        parameters_after: The same of the compressed model.
        layers: Every layer that has MACs, in the model's order.
        decomposition: Phase one in detail.
        pruning: Phase two in detail.
        calibration_images: Images used to re-estimate BatchNorm statistics.
        seconds: Wall-clock time of the whole job.
        structure: What rebuilds the compressed model from the dense one.
    """

    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    layers: tuple[LayerReport, ...]
    decomposition: DecompositionReport
    pruning: PruningReport
    calibration_images: int
    seconds: float
    structure: Structure

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Everything left as it was, with reasons, of both phases."""
        return self.decomposition.skipped + self.pruning.skipped

    @property
    def verify_seconds(self) -> float:
        """What proving the result right cost, of both phases."""
        return self.decomposition.verify_seconds + self.pruning.verify_seconds

    @property
    def largest_error(self) -> float | None:
        """Largest relative error that was found and accepted, of both phases; None where nothing was compared."""
        errors = (self.decomposition.largest_error, self.pruning.largest_error)
        return max((error for error in errors if error is not None), default=None)

    @property
    def status(self) -> str:
        """How far it came: every group of channels pruned that may be, some of them, or none.

        Returns:
            ``"full"``, ``"partial"`` or ``"decompose-only"``; ``"full"`` as well where pruning was not asked for.
        """
        if not self.pruning.groups:
            return "decompose-only" if self.pruning.skipped else "full"
        return "partial" if blocking(self.pruning.skipped) else "full"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the structure (it has a place of its own in an artefact)."""
        plain = asdict(self)
        del plain["structure"]
        plain |= {
            "status": self.status,
            "verify_seconds": self.verify_seconds,
            "largest_error": self.largest_error,
        }
        return plain


def compress(
    model: nn.Module,
    example_inputs: Any,
    recipe: Recipe,
    *,
    calibration: Iterable[Any] | None = None,
    ignored: Sequence[nn.Module] = (),
    forward_fn: ForwardFunction | None = None,
    on_step: Callable[[str], None] | None = None,
) -> tuple[nn.Module, CompressionReport]:
    """Compresses a model in the order of the paper: decompose the filters, remove the redundant ones, calibrate.

    Args:
        model: Any module. It is not changed, nor is any random state; the compressed one is a copy with the same
            flags.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments, as the model takes them; on
            the model's device and in its dtype.
        recipe: What to do.
        calibration: Unlabelled batches, called like ``example_inputs``, to re-estimate BatchNorm statistics.
        ignored: Modules whose outputs must keep their width.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.
        on_step: Told the name of each step as it begins.

    Returns:
        The compressed model and the report.

    Raises:
        RecipeError: No recipe, one that asks for nothing, or a pattern that matches nothing; before any work.
        SurgeryError: The model cannot be run, copied or traced, holds NaN or infinity, no layer is eligible, or memory
            ran out.
    """
    start = time.perf_counter()
    check_recipe(recipe)
    check_model(model, example_inputs)
    check_patterns(model, recipe)
    with preserved_random_state(), memory_errors_explained(on_step, first="copy") as step:
        dense = geometry(model)  # before any run: models may keep something of it
        compressed = copy_model(model)
        ignored = counterparts(model, compressed, ignored)
        step("measure")
        before = count_cost(compressed, lambda: run_model(compressed, example_inputs, forward_fn))
        decomposition, pruning = _changed_(
            compressed, example_inputs, recipe, before, ignored=ignored, forward_fn=forward_fn, step=step
        )
        images = 0
        if calibration is not None and recipe.calibration.batch_norm:
            step("calibrate")
            images = reestimate_batch_norm_(
                compressed,
                calibration,
                call=lambda net, batch: run_model(net, batch, forward_fn),
                images=recipe.calibration.images,
            )
        after = count_cost(compressed, lambda: run_model(compressed, example_inputs, forward_fn))
    report = CompressionReport(
        macs_before=before.macs,
        macs_after=after.macs,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        layers=_layer_reports(model, compressed, before, after, decomposition.layers),
        decomposition=decomposition,
        pruning=pruning,
        calibration_images=images,
        seconds=time.perf_counter() - start,
        structure=diff(dense, geometry(compressed)),
    )
    return compressed, report


def _changed_(
    model: nn.Module,
    example_inputs: Any,
    recipe: Recipe,
    before: ModelCost,
    *,
    ignored: Sequence[nn.Module],
    forward_fn: ForwardFunction | None,
    step: Step,
) -> tuple[DecompositionReport, PruningReport]:
    """The two phases, in place."""
    decomposition, pruning = NO_DECOMPOSITION, NO_PRUNING
    if recipe.decomposition.active:
        step("decompose")
        decomposition = decompose_(
            model,
            recipe.decomposition,
            scope=recipe.scope,
            map_sizes=before.map_sizes,
            verify=recipe.verify,
            require=False,
        )
    if recipe.pruning.active:
        step("prune")
        pruning = prune_(
            model,
            example_inputs,
            recipe.pruning,
            scope=recipe.scope,
            ignored=ignored,
            verify=recipe.verify,
            forward_fn=forward_fn,
            require=False,
            time_limit=recipe.time_limit,
        )
    if not (decomposition.layers or pruning.groups):
        raise SurgeryError(
            f"no layer is eligible: {summary(decomposition.skipped + pruning.skipped) or 'the model has none'}"
        )
    return decomposition, pruning


def _layer_reports(
    model: nn.Module,
    compressed: nn.Module,
    before: ModelCost,
    after: ModelCost,
    decomposed: Sequence[DecomposedLayer],
) -> tuple[LayerReport, ...]:
    ranks = {name: layer for layer in decomposed for name in layer.names}
    old_modules, new_modules = dict(model.named_modules()), dict(compressed.named_modules())
    reports = []
    for name, macs in before.layer_macs.items():
        old, new = old_modules[name], new_modules.get(name)
        if new is None:
            continue  # it computed the weight of a layer that was replaced
        layer = ranks.get(name)
        reports.append(
            LayerReport(
                name=name,
                kind=type(new).__name__,
                macs_before=macs,
                macs_after=after.layer_macs.get(name, 0),
                parameters_before=_own_parameters(old),
                parameters_after=_own_parameters(new),
                rank=layer.rank if layer else getattr(new, "rank", None) if isinstance(new, CPDBlock) else None,
                nmse=layer.nmse_mean if layer else None,
                kept=_width(new) / _width(old),
            )
        )
    return tuple(reports)


def _own_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _width(module: nn.Module) -> int:
    width = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
    return int(width) if isinstance(width, int) else 1
