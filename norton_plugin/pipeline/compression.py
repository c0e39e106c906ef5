"""Compression in the order of the paper; what is checked before it and reported after it stands beside this file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from norton_plugin.budget import BudgetPlan
from norton_plugin.calibration import take_batches
from norton_plugin.cost import count_cost
from norton_plugin.hf import carry_
from norton_plugin.integrations import as_criterion
from norton_plugin.modules.duplication import counterparts, duplicate
from norton_plugin.modules.memory import memory_errors_explained
from norton_plugin.modules.random_state import preserved_random_state
from norton_plugin.modules.run_state import preserved_state
from norton_plugin.modules.running import ForwardFunction, counted_by, run_model
from norton_plugin.pipeline.budgets import what_is_known, within_budget
from norton_plugin.pipeline.checks import check_arguments, require_changes, runs_images_again
from norton_plugin.pipeline.hybrid import lowest_divergence
from norton_plugin.pipeline.phases import Phases
from norton_plugin.pipeline.report import CompressionReport
from norton_plugin.pipeline.result import CompressionResult
from norton_plugin.pipeline.step_log import heard
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.criteria import on_modules_of
from norton_plugin.surgery.geometry import geometry, lasting
from norton_plugin.surgery.structure import diff

logger = logging.getLogger(__name__)


def compress(
    model: nn.Module,
    example_inputs: Any,
    recipe: Recipe,
    *,
    calibration: Iterable[Any] | None = None,
    criterion: Any = None,
    ignored: Sequence[nn.Module] = (),
    forward_fn: ForwardFunction | None = None,
    on_step: Callable[[str], None] | None = None,
    on_detail: Callable[[str], None] | None = None,
) -> CompressionResult:
    """Compress a model in the order of the paper: decompose the filters, remove the redundant ones, calibrate.

    Args:
        model: Any module. It is not changed, nor is any random state; the compressed one is a copy with the same
            flags.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments, as the model takes them; on
            the model's device and in its dtype.
        recipe: What to do.
        calibration: Unlabelled batches, called like ``example_inputs``, to re-estimate BatchNorm statistics on and,
            where ``recipe.calibration.fit`` is set, to fit the layers to; the criterion "output" needs them too. With
            ``recipe.distillation.passes`` the model learns from the dense one on them, last of all.
        criterion: Ranks channels in place of ``recipe.pruning.criterion``: an importance of Torch-Pruning, or a
            function from a ``ChannelGroup`` to one score per channel, (size,); low ones are removed first. It is
            shown the layers of ``model``, with their gradients.
        ignored: Modules whose outputs must keep their width.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call; MACs are counted by its attribute
            ``counted``, images are run by its attribute ``calibrated``, and by ``distilled`` to learn, where it has
            them (functions like it, which may also run what cannot be traced).
        on_step: Told the name of each step as it begins. Where neither it nor ``on_detail`` is given, the log of this
            module (INFO) says which step runs, and every ten seconds how far it is; at the end, the report's warnings.
        on_detail: Told how far a step is, in words, where it takes long.

    Returns:
        The compressed model and the report; ``model, report = compress(...)`` unpacks them.

    Raises:
        RecipeError: No recipe, one that asks for nothing, or a pattern that matches nothing; before any work.
        SurgeryError: The model cannot be run, copied or traced, holds NaN or infinity, no layer is eligible, or memory
            ran out.
    """
    start = time.perf_counter()
    check_arguments(model, example_inputs, recipe, calibration=calibration, criterion=criterion)
    ranking = None if criterion is None else on_modules_of(model, as_criterion(criterion))
    with (
        preserved_random_state(),
        preserved_state(model),
        heard(on_step, on_detail, tell=logger.info) as (begun, detail),
        memory_errors_explained(begun, first="copy") as step,
    ):
        compressed = duplicate(model)
        step("measure")
        before = count_cost(compressed, partial(run_model, compressed, example_inputs, counted_by(forward_fn)))
        dense = lasting(geometry(model), geometry(compressed))  # models may keep something of a run
        if calibration is not None and (recipe.budget.given or runs_images_again(recipe, criterion)):
            calibration = take_batches(calibration, recipe.calibration.images)
        phases = Phases(model, example_inputs, before, calibration, ranking, forward_fn, step, detail)
        planned: BudgetPlan | None
        known = what_is_known(phases, recipe, ignored=ignored)
        if recipe.budget.prune:
            compressed, recipe, planned, done = lowest_divergence(phases, recipe, ignored=ignored, known=known)
        else:
            recipe, planned = within_budget(phases, compressed, recipe, known)
            done = phases.run_(compressed, recipe, ignored=counterparts(model, compressed, ignored))
        require_changes(done.decomposition, done.pruning)
        planned = known.finished(planned, compressed)
        after = phases.cost_of(compressed)

    structure = diff(dense, geometry(compressed))
    carry_(compressed, structure)
    facts = {"structure": structure, "seconds": time.perf_counter() - start, "calibration_images": done.images}
    facts |= {"calibration": done.fitted, "budget": planned, "distillation": done.distilled}
    report = CompressionReport.of(model, compressed, before, after, done.decomposition, done.pruning, **facts)
    if on_step is None and on_detail is None:  # nobody else may be there to tell
        for words in report.warnings:
            logger.warning(words)
    times = None if known.latency is None else known.latency.table
    return CompressionResult(compressed, report, recipe, times, known.record)
