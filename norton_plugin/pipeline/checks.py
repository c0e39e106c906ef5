"""Whether a recipe, a model and an example can be worked on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from norton_plugin.calibration.layers import contract_of, patch_geometry
from norton_plugin.calibration.memory import MomentMemory, fitting_bytes
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.modules.running import output_tensors
from norton_plugin.reasons import Cause
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.names import check_keeps, check_ranks, check_scope
from norton_plugin.surgery.report import DecompositionReport, PruningReport, summary

# Where PyTorch keeps layers of whole numbers: their weights are packed, and no parameters.
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def check_arguments(model: nn.Module, example_inputs: Any, recipe: Recipe, *, calibration: Any, criterion: Any) -> None:
    """Check all that can be checked before any work; arguments as of ``compress``.

    Raises:
        RecipeError: The recipe asks for nothing, for what the images do not give, or has patterns that match nothing.
        SurgeryError: The model and the example cannot be worked on.
    """
    check_recipe(recipe)
    check_calibration(recipe, calibration, criterion)
    check_model(model, example_inputs)
    check_patterns(model, recipe)
    check_memory(model, recipe)


def check_recipe(recipe: Recipe) -> None:
    """Check that a recipe asks for something.

    Raises:
        RecipeError: It is no recipe, or leaves everything as it is.
    """
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"recipe is a {type(recipe).__name__}; expected a Recipe (Recipe.from_dict makes one)")
    if not (recipe.decomposes or recipe.pruning.active):
        raise RecipeError(
            "the recipe asks for nothing: set decomposition.rank (or share, or components), a budget, or "
            "pruning.keep below 1"
        )


def needs_images_to_rank(recipe: Recipe, criterion: Any = None) -> bool:
    """Tell whether channels are ranked by what images say of them; ``criterion`` stands in place of the recipe's."""
    return criterion is None and (recipe.pruning.active or recipe.budget.prune) and recipe.pruning.criterion == "output"


def runs_images_again(recipe: Recipe, criterion: Any = None) -> bool:
    """Tell whether several steps run the images, which then have to be kept; ``criterion`` as of the check above."""
    return recipe.calibration.fit or recipe.distillation.active or needs_images_to_rank(recipe, criterion)


def check_calibration(recipe: Recipe, calibration: Any, criterion: Any = None) -> None:
    """Check that there are images where the recipe needs some.

    Raises:
        RecipeError: ``calibration.fit`` or ``distillation.passes`` is set, or the criterion is "output", and there are
            none; or ``calibration`` is something else than batches.
    """
    if isinstance(calibration, str | bytes | PurePath | Tensor | Mapping):
        raise RecipeError(
            f"calibration is a {type(calibration).__name__}; expected an iterable of batches, each like the example "
            "inputs, such as a list or a DataLoader that gives no labels"
        )
    if recipe.distillation.active and calibration is None:
        raise RecipeError(
            "distillation.passes is set, which needs unlabelled images: give calibration=batches (on the command line "
            "--data DIR), or set it to 0"
        )
    if needs_images_to_rank(recipe, criterion) and calibration is None:
        raise RecipeError(
            "pruning.criterion is 'output', which needs unlabelled images: give calibration=batches (on the command "
            "line --data DIR), or another criterion: pabs, l2, random, vbd or csa"
        )
    if recipe.calibration.fit and calibration is None:
        raise RecipeError(
            "calibration.fit is set, which needs unlabelled images: give calibration=batches (on the command line "
            "--calibration-data DIR), or set it to false"
        )


def check_memory(model: nn.Module, recipe: Recipe) -> None:
    """Check that the moments of every layer that is to be fitted stay within the recipe's memory.

    Raises:
        RecipeError: Those of a layer do not; the least that would do is said.
    """
    # Pruning makes layers smaller: how far is not known yet.
    if recipe.calibration.memory is None or not recipe.calibration.fit or recipe.budget.prune or recipe.pruning.active:
        return
    needs = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and recipe.scope.admits(name):
            contract = contract_of(module)
            if not isinstance(contract, Cause):
                needs[name] = fitting_bytes(contract.weight.flatten(1), patch_geometry(contract))
    MomentMemory(recipe.calibration.memory_bytes).require(needs)


def check_patterns(model: nn.Module, recipe: Recipe) -> None:
    """Check that every pattern of the recipe names a layer that it can be meant for.

    Raises:
        RecipeError: A pattern matches nothing; it is quoted.
    """
    check_scope(model, recipe.scope)
    check_ranks(model, recipe.decomposition)
    check_keeps(model, recipe.pruning)


def check_model(model: nn.Module, example_inputs: Any) -> None:
    """Check that a model and an example can be worked on.

    Raises:
        SurgeryError: No parameters, values that are not finite, dtypes or devices that do not fit together.
    """
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    for module in model.modules():
        if type(module).__module__.startswith(_QUANTISED):
            raise SurgeryError(
                f"the {type(model).__name__} holds a quantised {type(module).__name__}; compress the floating-point "
                "model first, and quantise what comes of it (norton export --int8)"
            )
    if isinstance(model, torch.jit.ScriptModule):
        raise SurgeryError("the model is a script of torch.jit; compress the model itself, and script what comes of it")
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


def require_changes(decomposition: DecompositionReport, pruning: PruningReport) -> None:
    """Check that at least one layer was decomposed or one group of channels pruned.

    Raises:
        SurgeryError: Nothing was; with the reasons.
    """
    if not (decomposition.layers or pruning.groups):
        reasons = summary(decomposition.skipped + pruning.skipped)
        raise SurgeryError(f"no layer is eligible: {reasons or 'the model has none'}")
