"""The main job: a model in, a compressed model and a report out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from norton_plugin.blocks import CPDBlock
from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.cost import ModelCost, count_cost
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.modules.running import ForwardFunction, output_tensors, run_model
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.decompose import decompose_
from norton_plugin.surgery.prune import prune_
from norton_plugin.surgery.report import (
    DecomposedLayer,
    DecompositionReport,
    PruningReport,
    Skipped,
    blocking,
    summary,
)
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
        for name in ("decomposition", "pruning"):
            plain[name]["skipped"] = [entry.to_dict() for entry in getattr(self, name).skipped]
        plain["pruning"]["rule_failures"] = [cause.text for cause in self.pruning.rule_failures]
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
        model: Any module. It is not changed; the compressed one is a copy with the same flags.
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
        RecipeError: No recipe, one that asks for nothing, or a pattern that matches nothing.
        SurgeryError: The model cannot be run, copied or traced, holds NaN or infinity, or no layer is eligible.
    """
    start = time.perf_counter()
    step = on_step or (lambda name: None)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"recipe is a {type(recipe).__name__}; expected a Recipe (Recipe.from_dict makes one)")
    if not (recipe.decomposition.active or recipe.pruning.active):
        raise RecipeError("the recipe asks for nothing: set decomposition.rank, or pruning.keep below 1, or both")
    check_model(model, example_inputs)
    dense = geometry(model)  # before any run: models may keep something of it
    compressed = _copy(model)
    step("measure")
    before = count_cost(compressed, lambda: run_model(compressed, example_inputs, forward_fn))
    ignored = _counterparts(model, compressed, ignored)

    decomposition, pruning, images = NO_DECOMPOSITION, NO_PRUNING, 0
    if recipe.decomposition.active:
        step("decompose")
        decomposition = decompose_(
            compressed,
            recipe.decomposition,
            scope=recipe.scope,
            map_sizes=before.map_sizes,
            verify=recipe.verify,
            require=False,
        )
    if recipe.pruning.active:
        step("prune")
        pruning = prune_(
            compressed,
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


def check_model(model: nn.Module, example_inputs: Any) -> None:
    """Checks that a model and an example can be worked on.

    Raises:
        SurgeryError: No parameters, values that are not finite, dtypes or devices that do not fit together.
    """
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise SurgeryError(f"the {type(model).__name__} has no parameters; there is nothing to compress")
    for name, tensor in parameters.items():
        if isinstance(tensor, UninitializedParameter):
            raise SurgeryError(f"{name} has no shape yet; run the model once, so that its lazy layers take theirs")
        if tensor.is_meta:
            raise SurgeryError(f"{name} is on the meta device; load weights before compressing")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SurgeryError(f"{name} holds NaN or infinite values; load a sound checkpoint first")
    for name, buffer in model.named_buffers():
        # Infinity is fine here: attention masks hold it.
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            raise SurgeryError(f"the buffer {name} holds NaN; load a sound checkpoint first")
    floating = [p for p in parameters.values() if p.is_floating_point()]
    for example in output_tensors(example_inputs):
        if floating and example.device != floating[0].device:
            raise SurgeryError(
                f"example_inputs are on {example.device}, the model on {floating[0].device}; move them together"
            )
        if floating and all(p.dtype != example.dtype for p in floating):
            raise SurgeryError(
                f"example_inputs are {example.dtype}, the model's parameters {floating[0].dtype}; give an example of "
                "the model's dtype (or call model.float() first: factors can be cast to half precision afterwards)"
            )


def _computed_attributes(model: nn.Module) -> dict[int, Any]:
    """Detached copies, by identity, of tensors that modules compute and keep, such as the weights of weight_norm."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}


def _copy(model: nn.Module) -> nn.Module:
    try:
        with torch.no_grad():  # scripted modules copy their parameters by an operation
            copied = copy.deepcopy(model, _computed_attributes(model))
    except Exception as error:
        raise SurgeryError(
            f"the model cannot be copied ({type(error).__name__}: {error}); detach tensors that it keeps as plain "
            "attributes, and compress before it is wrapped or compiled"
        ) from error
    for new, old in zip(copied.parameters(), model.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return copied


def _counterparts(model: nn.Module, copied: nn.Module, modules: Sequence[nn.Module]) -> list[nn.Module]:
    names = {module: name for name, module in model.named_modules()}
    missing = [type(m).__name__ for m in modules if m not in names]
    if missing:
        raise SurgeryError(f"ignored modules {missing} are not part of the model")
    return [copied.get_submodule(names[m]) for m in modules]


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
