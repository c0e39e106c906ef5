"""Pruning by criterion, and decomposition against pruning against both, at a budget of MACs: no labels, no fine-tuning.

Criteria: inner channels of the blocks are removed, the same share everywhere, the largest within the budget. Without
compensation BatchNorm statistics are re-estimated on the images; with it, layers are fitted to what they see
(`Recipe.calibration.fit`). Plans: each of those that a budget with `prune` tries, carried out. Each measurement adds a
row to ``hybrid_budget.json``.

    python tools/benchmarks/hybrid_budget.py --weights WEIGHTS
    python tools/benchmarks/hybrid_budget.py --weights WEIGHTS --networks resnet56 --parts plans --levels filter
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import chain, product
from typing import Any, get_args

import torch
from cifar_data import batches
from hybrid import Images, add_row
from levels_recipe import run_dense_
from unlabelled import accuracy, dense_networks, facts_of, open_images, parser_of, timed

from norton_plugin import compress
from norton_plugin.budget import BudgetPlan
from norton_plugin.cost import count_cost
from norton_plugin.pipeline.budgets import what_is_known
from norton_plugin.pipeline.hybrid import candidate_plans
from norton_plugin.pipeline.phases import Phases
from norton_plugin.recipe import Budget, Calibration, Criterion, Decomposition, Pruning, Recipe
from norton_plugin.zoo import ModelSource

_BATCH = 50
_EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
_STEPS = 64
Row = tuple[str, dict[str, Any]]


def inner_pruning(criterion: str, keep: float) -> Pruning:
    """Return the settings that keep a share of the inner channels of every block."""
    return Pruning(keeps={"*.conv1": keep}, round_to=1, criterion=criterion)  # type: ignore[arg-type]


def largest_keep(source: ModelSource, budget: float) -> float:
    """Return the largest share of inner channels with which the network stays within a budget of MACs."""
    for step in range(_STEPS - 1, 0, -1):
        recipe = Recipe(pruning=inner_pruning("l2", step / _STEPS), verify=False)
        _, report = compress(source.model, _EXAMPLE[:1], recipe)
        if report.macs_after <= budget * report.macs_before:
            return step / _STEPS
    raise SystemExit(f"no share stays within {budget} of the MACs")


def measure(source: ModelSource, recipe: Recipe, images: Images) -> dict[str, Any]:
    """Compress and evaluate."""
    count, seed = recipe.calibration.images, recipe.calibration.seed
    sample = batches(images.train.subset(count, seed=seed), source, size=_BATCH)
    (model, report), seconds = timed(lambda: compress(source.model, _EXAMPLE, recipe, calibration=sample))
    run_dense_(model)
    found = report.calibration
    return {
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "parameters_share": round(report.parameters_after / report.parameters_before, 4),
        "top1": accuracy(model, source, images),
        "divergence": None if found is None else round(found.divergence[found.chosen], 4),
        **seconds,
    }


def criteria_rows(
    source: ModelSource, criteria: Sequence[str], budget: float, seed: int, images: Images, count: int
) -> Iterator[Row]:
    """Measure criteria, with and without compensation."""
    keep = largest_keep(source, budget)
    for criterion in criteria:
        for fit in (True, False):
            settings = Calibration(fit=fit, images=count, seed=seed)
            recipe = Recipe(pruning=inner_pruning(criterion, keep), calibration=settings)
            row = {"part": "criteria", "variant": criterion, "compensated": fit, "keep": keep}
            label = f"{criterion} {'compensated' if fit else 'as cut'}"
            yield label, row | measure(source, recipe, images)


def plans_of(source: ModelSource, recipe: Recipe, sample: list[torch.Tensor]) -> list[BudgetPlan]:
    """Return the plans for a budget that also prunes."""
    cost = count_cost(source.model, lambda: source.model(_EXAMPLE))
    phases = Phases(source.model, _EXAMPLE, cost, sample, None, None, lambda step: None)
    return candidate_plans(phases, recipe, known=what_is_known(phases, recipe, ignored=()))[0]


def plan_rows(source: ModelSource, level: str, budget: float, seed: int, images: Images, count: int) -> Iterator[Row]:
    """Carry out every plan for a budget that also prunes."""
    recipe = Recipe(
        budget=Budget(macs=budget, prune=True),
        decomposition=Decomposition(level=level, restarts=1, sweeps=60),  # type: ignore[arg-type]
        pruning=Pruning(criterion="output", round_to=1),
        calibration=Calibration(fit=True, images=count, seed=seed),
    )
    sample = batches(images.train.subset(count, seed=seed), source, size=_BATCH)
    start = time.perf_counter()
    plans = plans_of(source, recipe, sample)
    planning = round(time.perf_counter() - start, 1)
    for plan in plans:
        row = {"part": "plans", "variant": plan.phases, "level": level, "planning_seconds": planning}
        row |= {"groups_pruned": len(plan.groups), "layers_decomposed": sum(x.level is not None for x in plan.layers)}
        yield f"{plan.phases} {level}", row | measure(source, plan.recipe(recipe), images)


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = parser_of(__doc__, networks=["resnet20"])
    parser.add_argument("--parts", nargs="+", default=["criteria", "plans"], choices=["criteria", "plans"])
    parser.add_argument("--criteria", nargs="+", default=list(get_args(Criterion)), choices=get_args(Criterion))
    parser.add_argument("--levels", nargs="+", default=["filter", "layer"], help="of the plans")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.32, 0.16])
    arguments = parser.parse_args()
    images = open_images(arguments)
    facts = facts_of("hybrid_budget.py")
    for name, source, dense in dense_networks(arguments, images):
        for budget, seed in product(arguments.budgets, arguments.seeds):
            facing = (budget, seed, images, arguments.count)
            rows = [criteria_rows(source, arguments.criteria, *facing)] if "criteria" in arguments.parts else []
            rows += [plan_rows(source, level, *facing) for level in arguments.levels if "plans" in arguments.parts]
            for label, found in chain(*rows):
                row = {
                    "network": name,
                    "budget": budget,
                    "seed": seed,
                    "top1_dense": dense,
                    "test_images": len(images.test),
                }
                row |= {"calibration_images": arguments.count, **found}
                print(row, flush=True)
                label = f"{name} {label} {budget} {arguments.count} images seed {seed} on {len(images.test)}"
                add_row(arguments.output / "hybrid_budget.json", label, row, facts)


if __name__ == "__main__":
    main()
