"""A budget of milliseconds: layers foretell them, and the whole model as it is delivered says whether they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from norton_plugin.budget.plan import BudgetPlan, Milliseconds
from norton_plugin.budget.reach import OutOfReachError
from norton_plugin.cost import ModelCost
from norton_plugin.errors import RecipeError
from norton_plugin.latency import (
    DeliveredModels,
    LatencyTable,
    LayerClock,
    Timing,
    read_table,
    skeleton,
    timed_layers,
)
from norton_plugin.modules.running import ForwardFunction, counted_by
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.layouts import Layout

# A measured share this near to the budget, relative to it, meets it.
TOLERANCE = 0.02
# Plans that are measured until one meets the budget.
_ROUNDS = 5
_ABOVE = 1 + 1e-6  # of the least that can be reached, for rounding
_NEARLY_ALL = 1 - 1e-6  # the highest aim: a budget of all the milliseconds is none

Solve = Callable[[Recipe], BudgetPlan]


class LatencyBudget:
    """Finds plans that take a share of the dense model's milliseconds.

    Args:
        model: The dense model; left as it is.
        recipe: With a budget of milliseconds; a table in it is taken in place of measuring.
        cost: Of the model.
        example_inputs: What is timed.
        ignored: Modules of the model whose outputs must keep their width.
        forward_fn: In place of the plain call.
        on_detail: Told how far measuring is, in words.

    Attributes:
        clock: Tells how long layers take.

    Raises:
        RecipeError: The table cannot be read.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        cost: ModelCost,
        *,
        example_inputs: Any,
        ignored: Sequence[nn.Module] = (),
        forward_fn: ForwardFunction | None = None,
        on_detail: Callable[[str], None] | None = None,
    ) -> None:
        self._model, self._cost, self._ignored = model, cost, ignored
        self._example, self._forward, self._detail = example_inputs, forward_fn, on_detail or (lambda words: None)
        self._delivered: DeliveredModels | None = None
        run = counted_by(forward_fn)
        if recipe.budget.table is not None:
            table = read_table(recipe.budget.table)
        else:
            self._detail("timing the dense model")
            delivered = self._delivered = DeliveredModels(model, example_inputs, run)
            machine, memory_format = delivered.machine, delivered.memory_format
            table = LatencyTable(delivered.milliseconds, memory_format=memory_format, machine=machine)
        layers = timed_layers(model, example_inputs, run)
        self.clock = LayerClock(layers, table, measures=self._delivered is not None)

    @property
    def table(self) -> LatencyTable:
        """What was measured."""
        return self.clock.table

    def settle(self, layouts: Mapping[str, Sequence[Layout]]) -> None:
        """Measure layers in the sizes they may become; see ``LayerClock.settle``."""
        self.clock.settle(layouts, on_layer=lambda done, count: self._detail(f"timing layers, {done} of {count}"))

    def meet(self, recipe: Recipe, solve: Solve) -> BudgetPlan:
        """Return the plan that meets the budget as it is delivered.

        A plan is made by the times of layers, then a model of its sizes is timed beside the dense one; where it misses
        the budget by more than ``TOLERANCE``, the next plan aims that much lower or higher. Where none meets it, the
        plan is the nearest one below, or the fastest.

        Args:
            recipe: With the budget.
            solve: Returns the best plan for a recipe whose budget names the milliseconds to aim at.

        Raises:
            RecipeError: It cannot be met; the least that can be is said.
        """
        asked = recipe.budget.limits["latency"]
        aim, tried = min(_NEARLY_ALL, asked / self.table.correction), list[tuple[float, BudgetPlan]]()
        for attempt in range(1, _ROUNDS + 1):
            plan, fastest = self._solved(recipe, solve, aim)
            plan = self._timed(plan, recipe, attempt)
            share = plan.milliseconds.share if plan.milliseconds is not None else 1.0
            tried.append((share, plan))
            if fastest and share > asked * (1 + TOLERANCE):
                raise OutOfReachError("latency", asked, share, recipe)
            if self._delivered is None or abs(share / asked - 1) <= TOLERANCE or plan.latency is None:
                break
            before, aim = aim, min(_NEARLY_ALL, plan.latency * asked / share)
            if aim == before:
                break
        within = [entry for entry in tried if entry[0] <= asked * (1 + TOLERANCE)]
        _, best = max(within, key=_share) if within else min(tried, key=_share)
        if self._delivered is not None and best.latency and best.milliseconds is not None:
            self.table.correction = best.milliseconds.share / best.latency
        return replace(best, budget=recipe.budget)

    @property
    def measures(self) -> bool:
        """Whether whole models are timed; a table that was given tells of layers only."""
        return self._delivered is not None

    def timed(self, model: nn.Module) -> Milliseconds:
        """Time a model of the sizes of a plan beside the dense one; nothing foretold it.

        Raises:
            RecipeError: A table was given, so that nothing is measured.
        """
        if self._delivered is None:
            raise RecipeError("budget.table was given, so that no model is timed; leave it out to measure")
        self._detail("timing a narrower model")
        found = self._delivered.beside_dense(model)
        return Milliseconds(found.dense, found.compressed, found.compressed, plans=1)

    def confirmed(self, plan: BudgetPlan, compressed: nn.Module) -> BudgetPlan:
        """Return the plan with the measured time of the very model that came of it."""
        if self._delivered is None or plan.milliseconds is None:
            return plan
        self._detail("timing the compressed model")
        return replace(plan, milliseconds=self._recorded(plan, self._delivered.beside_dense(compressed)))

    def _solved(self, recipe: Recipe, solve: Solve, aim: float) -> tuple[BudgetPlan, bool]:
        """Return the plan for an aim, and whether it is the fastest there is."""

        def aiming_at(share: float) -> BudgetPlan:
            return solve(replace(recipe, budget=replace(recipe.budget, latency=share, table=None)))

        try:
            return aiming_at(aim), False
        except OutOfReachError as error:
            if error.name != "latency":
                raise
            if self._delivered is None or error.least * _ABOVE > _NEARLY_ALL:  # no plan saves any time
                least = error.least * self.table.correction
                raise OutOfReachError("latency", recipe.budget.limits["latency"], least, recipe) from error
            return aiming_at(error.least * _ABOVE), True

    def _timed(self, plan: BudgetPlan, recipe: Recipe, attempt: int) -> BudgetPlan:
        """Return a plan with what it takes."""
        if self._delivered is None:
            dense = self.table.milliseconds
            predicted = (plan.latency or 0.0) * self.table.correction * dense
            return replace(plan, milliseconds=Milliseconds(dense, predicted))
        self._detail(f"timing plan {attempt}")
        sizes = skeleton(
            self._model,
            plan.recipe(recipe),
            example_inputs=self._example,
            map_sizes=self._cost.map_sizes,
            ignored=self._ignored,
            forward_fn=self._forward,
        )
        plan = replace(plan, milliseconds=Milliseconds(0.0, 0.0, plans=attempt))
        return replace(plan, milliseconds=self._recorded(plan, self._delivered.beside_dense(sizes)))

    @staticmethod
    def _recorded(plan: BudgetPlan, timing: Timing) -> Milliseconds:
        plans = 0 if plan.milliseconds is None else plan.milliseconds.plans
        return Milliseconds(timing.dense, (plan.latency or 0.0) * timing.dense, timing.compressed, plans)


def _share(entry: tuple[float, BudgetPlan]) -> float:
    return entry[0]
