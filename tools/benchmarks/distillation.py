"""What learning from the dense model on unlabelled images adds to a budget and a fit: ResNet-20 or -56, no labels.

The model is compressed as ``norton compress --budget macs=... --calibrate`` does, on training images drawn by the seed,
and evaluated; then it learns as ``--distill`` lets it, on the very same images, and is evaluated again. Each result
is a row of ``distillation.json``.

    python tools/benchmarks/distillation.py --weights WEIGHTS
    python tools/benchmarks/distillation.py --weights WEIGHTS --passes 2 5 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from typing import Any

import torch
from budget import _BATCH, _EXAMPLE, _QUICK
from cifar_data import batches, load_resnet
from hybrid import Images, add_row
from levels_recipe import run_dense_
from torch import nn
from unlabelled import accuracy, facts_of, open_images, parser_of, timed

from norton_plugin import compress
from norton_plugin.distillation import distill_
from norton_plugin.modules.running import run_model
from norton_plugin.pipeline import CompressionReport
from norton_plugin.recipe import Budget, Calibration, Decomposition, Distillation, Recipe
from norton_plugin.zoo import ModelSource


def start(source: ModelSource, budget: float, seed: int, sample: list[torch.Tensor]) -> tuple[Any, CompressionReport]:
    """Compress without distillation."""
    fitting = Calibration(fit=True, images=sum(map(len, sample)), seed=seed)
    recipe = Recipe(budget=Budget(macs=budget), decomposition=Decomposition(**_QUICK), calibration=fitting)
    return compress(source.model, _EXAMPLE, recipe, calibration=sample)


def learn(
    source: ModelSource, model: nn.Module, sample: list[torch.Tensor], settings: Distillation, images: Images
) -> dict[str, Any]:
    """Let a copy learn, and evaluate it."""
    own = copy.deepcopy(model)
    report, seconds = timed(lambda: distill_(source.model, own, sample, call=run_model, **settings.to_dict()))
    run_dense_(own)
    return {
        "passes": settings.passes,
        "lr": report.lr,
        "steps": report.steps,
        "top1": accuracy(own, source, images),
        "divergence_before": round(report.divergence["before"], 4),
        "divergence": round(report.divergence["after"], 4),
        "kept": report.kept,
        **seconds,
    }


def measure(
    name: str, budget: float, seed: int, images: Images, facts: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Compress one network to one budget, let it learn for each number of passes, and write the rows."""
    source = load_resnet(name, arguments.weights)
    source.model.eval()
    sample = batches(images.train.subset(arguments.count, seed=seed), source, size=_BATCH)
    model, report = start(source, budget, seed, sample)
    evaluated = copy.deepcopy(model)
    run_dense_(evaluated)
    count = len(images.test)
    common = {
        "network": name,
        "budget": budget,
        "seed": seed,
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "test_images": count,
        "calibration_images": arguments.count,
        "top1_dense": accuracy(source.model, source, images),
        "top1_before": accuracy(evaluated, source, images),
    }
    for passes in arguments.passes:
        settings = replace(Distillation(), passes=passes, lr=arguments.lr, seed=seed)
        row = common | learn(source, model, sample, settings, images)
        print(row, flush=True)
        label = f"{name} {budget} {passes} passes {arguments.count} images seed {seed} on {count}"
        add_row(arguments.output / "distillation.json", label, row, facts)


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = parser_of(__doc__, networks=["resnet20"], test_images=10000)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.16, 0.32])
    parser.add_argument("--passes", type=int, nargs="+", default=[2], help="over the calibration images")
    parser.add_argument("--lr", type=float, default=Distillation().lr)
    arguments = parser.parse_args()
    images = open_images(arguments)
    facts = facts_of("distillation.py", "calibration and distillation")
    for name in arguments.networks:
        for budget in arguments.budgets:
            for seed in arguments.seeds:
                measure(name, budget, seed, images, facts, arguments)


if __name__ == "__main__":
    main()
