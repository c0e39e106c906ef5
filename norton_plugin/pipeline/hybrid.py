"""A budget for both phases: plans are carried out, and the one that comes nearest to the dense model is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from norton_plugin.budget import BudgetPlan, LatencyBudget, NarrowModel, plan_candidates
from norton_plugin.calibration import OutputCriterion
from norton_plugin.calibration.batches import batch_size
from norton_plugin.calibration.input_moments import InputMoments
from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.calibration.positions import positions_of
from norton_plugin.channels import ChannelGraph
from norton_plugin.errors import SurgeryError
from norton_plugin.latency import skeleton
from norton_plugin.modules.duplication import counterparts, duplicate
from norton_plugin.modules.running import run_model
from norton_plugin.pipeline.budgets import Known, RecordedRanking, telling_images
from norton_plugin.pipeline.calibrating import finish_, ranked_by_outputs
from norton_plugin.pipeline.checks import needs_images_to_rank
from norton_plugin.pipeline.phases import Outcome, Phases
from norton_plugin.recipe import Distillation, Recipe

# Rounding of costs that are shares of layers.
_SLACK = 1e-3
# MACs beyond those of a plan by which a group tells that it was not pruned after all.
_LEFT = 1e-2


def lowest_divergence(
    phases: Phases, recipe: Recipe, *, ignored: Sequence[nn.Module], known: Known
) -> tuple[nn.Module, Recipe, BudgetPlan, Outcome]:
    """Carry out plans of decomposition, of pruning, of both and of even pruning; return the best on held-back images.

    Args:
        phases: What they work with; with images.
        recipe: With a budget that also prunes.
        ignored: Modules of the dense model whose outputs must keep their width.
        known: As of ``budgets.what_is_known``.

    Returns:
        The compressed model, its recipe with sizes and shares in place of the budget, the plan, and what was done.

    Raises:
        RecipeError: The budget cannot be met; the least that can be is said.
        SurgeryError: No plan could be carried out within the budget.
    """
    plans, phases = candidate_plans(phases, recipe, ignored=ignored, known=known)
    best: tuple[nn.Module, Recipe, BudgetPlan, Outcome] | None = None
    divergences: dict[str, float] = {}
    dropped: list[str] = []
    lowest = math.inf
    for plan in plans:
        compressed, sized = duplicate(phases.model), plan.recipe(recipe)
        untaught = replace(sized, distillation=Distillation())  # only the best learns from the dense model
        done = phases.run_(compressed, untaught, ignored=counterparts(phases.model, compressed, ignored))
        if done.fitted is None or not _within(phases, compressed, plan):
            dropped.append(plan.phases)  # groups were not pruned after all, as their proof failed
            continue
        found = done.fitted.divergence[done.fitted.chosen]
        divergences[plan.phases] = min(found, divergences.get(plan.phases, math.inf))
        if best is None or found < lowest:
            best, lowest = (compressed, sized, plan, done), found
    if best is None:
        raise SurgeryError(
            "no plan stays within the budget, since groups of channels that it prunes could not be pruned; leave them "
            "out (scope), or leave out budget.prune"
        )
    compressed, sized, plan, done = best
    taught: dict[str, Any] = {"step": phases.step, "forward_fn": phases.forward_fn, "on_detail": phases.detail}
    _, distilled = finish_(phases.model, compressed, phases.calibration, norms=False, recipe=sized, **taught)
    done = replace(done, distilled=distilled)
    missed = tuple(dict.fromkeys((*plan.missed, *dropped)))
    return compressed, sized, replace(plan, divergence=divergences, missed=missed), done


def candidate_plans(
    phases: Phases, recipe: Recipe, *, ignored: Sequence[nn.Module] = (), known: Known
) -> tuple[list[BudgetPlan], Phases]:
    """Return plans of decomposition, of pruning and of both, and the phases with a ranking that has seen the images.

    Args:
        phases: What they work with; with images.
        recipe: With a budget that also prunes.
        ignored: Modules of the dense model whose outputs must keep their width.
        known: As of ``budgets.what_is_known``.

    Raises:
        RecipeError: The budget cannot be met; the least that can be is said.
    """
    model, inputs = duplicate(phases.model), phases.example_inputs
    call = telling_images(partial(run_model, forward_fn=phases.forward_fn), phases.detail)
    if known.batches is None or known.record is None:
        raise SurgeryError("budget.prune measures on images, and there are none")
    memory = MomentMemory(recipe.calibration.memory_bytes).halved()
    positions = positions_of(recipe.calibration.positions, images=sum(map(batch_size, known.batches)))
    settings: dict[str, Any] = {"positions": positions, "seed": recipe.calibration.seed, "memory": memory}
    moments: Callable[[], InputMoments] = partial(
        InputMoments, model, known.batches, example_inputs=inputs, call=call, **settings
    )
    if needs_images_to_rank(recipe, phases.ranking):

        def rank() -> OutputCriterion:
            phases.step("rank")
            images = known.batches or ()
            criterion = ranked_by_outputs(model, inputs, images, recipe, phases.forward_fn, memory=memory.limit)
            phases.step("budget")
            return criterion

        ranking = RecordedRanking(known.record, rank)
        phases, moments = replace(phases, ranking=ranking), lambda: ranking.criterion.moments
    phases.step("budget")
    graph = ChannelGraph(model, inputs, forward_fn=phases.forward_fn, time_limit=recipe.time_limit)
    frozen = {module for top in counterparts(phases.model, model, ignored) for module in top.modules()}
    facts: dict[str, Any] = {"groups": graph.groups(), "moments": moments, "batches": known.batches, "call": call}
    facts |= {"ignored": frozen, "ranking": phases.ranking, "record": known.record, "latency": known.latency}
    if known.latency is None or known.latency.measures:
        facts["narrowed"] = _Narrowing(phases, ignored, known.latency)
    plans = plan_candidates(model, recipe, phases.cost, **facts)
    if isinstance(phases.ranking, RecordedRanking):
        phases.ranking.release()
    return plans, phases


class _Narrowing:
    """Returns what the dense model comes to, pruned by a recipe; equal models are timed once.

    Args:
        phases: What it works with.
        ignored: Modules of the dense model whose outputs must keep their width.
        latency: Tells milliseconds; None where no budget names any.
    """

    def __init__(self, phases: Phases, ignored: Sequence[nn.Module], latency: LatencyBudget | None) -> None:
        self._phases, self._ignored, self._latency = phases, ignored, latency
        self._known: dict[tuple[int, int], NarrowModel] = {}

    def __call__(self, recipe: Recipe) -> NarrowModel:
        phases = self._phases
        narrow = skeleton(
            phases.model,
            recipe,
            example_inputs=phases.example_inputs,
            map_sizes=phases.cost.map_sizes,
            ignored=self._ignored,
            forward_fn=phases.forward_fn,
            ranking=phases.ranking,
            verify=True,
        )
        cost = phases.cost_of(narrow)
        size = cost.macs, cost.parameters
        if size not in self._known:
            self._known[size] = NarrowModel(cost, None if self._latency is None else self._latency.timed(narrow))
        return self._known[size]


def _within(phases: Phases, compressed: nn.Module, plan: BudgetPlan) -> bool:
    cost = phases.cost_of(compressed)
    reached = {"macs": cost.macs / phases.cost.macs, "params": cost.parameters / phases.cost.parameters}
    limits = {name: limit for name, limit in plan.budget.limits.items() if name in reached}
    limits = limits or {"macs": plan.macs * (1 + _LEFT)}  # milliseconds alone: what was timed has these MACs
    return all(reached[name] <= limit * (1 + _SLACK) for name, limit in limits.items())
