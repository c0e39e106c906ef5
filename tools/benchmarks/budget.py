"""Sizes found from a budget against one share for all layers, at equal MACs: ResNet-20 or -56, no labels, no training.

Level ``layer``; every model is fitted to training images drawn by the seed (`Recipe.calibration.fit`). Of the single
shares the largest within the budget is taken. Each measurement adds a row to ``budget.json``.

    python tools/benchmarks/budget.py --weights WEIGHTS
    python tools/benchmarks/budget.py --weights WEIGHTS --networks resnet56 --seeds 0 1 2 --test-images 10000
"""

from __future__ import annotations

from typing import Any

import torch
from cifar_data import batches
from hybrid import Images, add_row
from levels_recipe import run_dense_
from unlabelled import QUICK, accuracy, dense_networks, facts_of, open_images, parser_of, timed

from norton_plugin import compress
from norton_plugin.cost import count_cost
from norton_plugin.recipe import Budget, Calibration, Decomposition, Recipe, Scope
from norton_plugin.surgery.targets import plan_decomposition
from norton_plugin.zoo import ModelSource

_BATCH = 50
_EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
_QUICK: dict[str, Any] = {"level": "layer", **QUICK}
_STEPS = 1000


def largest_share(source: ModelSource, budget: float) -> float:
    """Return the largest share for all layers with which the whole network stays within a budget of MACs."""
    model = source.model
    cost = count_cost(model, lambda: model(_EXAMPLE[:1]))
    for step in range(int(budget * _STEPS) + 50, 0, -1):
        asked = Decomposition(share=step / _STEPS, **_QUICK)
        targets, _ = plan_decomposition(model, asked, scope=Scope(), map_sizes=cost.map_sizes)
        saved = sum(target.shape.dense_macs - target.shape.macs(target.layouts[0]) for target in targets)
        if cost.macs - saved <= budget * cost.macs:
            return step / _STEPS
    raise SystemExit(f"no share stays within {budget} of the MACs")


def measure(source: ModelSource, variant: str, budget: float, seed: int, images: Images, count: int) -> dict[str, Any]:
    """Compress one way, and evaluate."""
    fitting = Calibration(fit=True, images=count, seed=seed)
    if variant == "budget":
        recipe = Recipe(budget=Budget(macs=budget), decomposition=Decomposition(**_QUICK), calibration=fitting)
    else:
        share = largest_share(source, budget)
        recipe = Recipe(decomposition=Decomposition(share=share, **_QUICK), calibration=fitting)
    sample = batches(images.train.subset(count, seed=seed), source, size=_BATCH)
    (model, report), seconds = timed(lambda: compress(source.model, _EXAMPLE, recipe, calibration=sample))
    run_dense_(model)
    found = report.calibration
    assert found is not None  # noqa: S101  # the recipe asks for it
    return {
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "parameters_share": round(report.parameters_after / report.parameters_before, 4),
        "top1": accuracy(model, source, images),
        "divergence": round(found.divergence[found.chosen], 4),
        "kept": found.chosen,
        **seconds,
    }


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = parser_of(__doc__, networks=["resnet20"])
    parser.add_argument("--variants", nargs="+", default=["one share", "budget"], choices=["one share", "budget"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.16, 0.32, 0.5])
    arguments = parser.parse_args()
    images = open_images(arguments)
    facts = facts_of("budget.py")
    for name, source, dense in dense_networks(arguments, images):
        for budget in arguments.budgets:
            for seed in arguments.seeds:
                for variant in arguments.variants:
                    row = {"network": name, "variant": variant, "budget": budget, "seed": seed, "top1_dense": dense}
                    row |= {"test_images": len(images.test), "calibration_images": arguments.count}
                    row |= measure(source, variant, budget, seed, images, arguments.count)
                    print(row, flush=True)
                    label = f"{name} {variant} {budget} {arguments.count} images seed {seed} on {len(images.test)}"
                    add_row(arguments.output / "budget.json", label, row, facts)


if __name__ == "__main__":
    main()
