"""What each step of compression on unlabelled images gives: every step left out alone, levels, and published baselines.

Part ``steps``: ResNet-20 within a budget of MACs at the layer level, with sizes from measured sensitivities, factors
fitted layer after layer, norms corrected where that helps, and two passes of distillation; then the same without one of
these. Part ``levels``: the fitted model at every level. Part ``baselines``: the same inner channels removed (those of
the smallest norms, the same share in every block), and what is done for the others: nothing, the least squares
of GRAIL (arXiv 2602.23795: one ridge regression from the Gram matrix of the dense model's hidden channels), folding
(arXiv 2502.10216: channels are clustered by k-means and merged in place of removed), or the package's compensation.
BatchNorm statistics are re-estimated for all but the last. No label is used. Each measurement adds a row to
``ablation.json``.

    python tools/benchmarks/ablation.py --weights WEIGHTS
    python tools/benchmarks/ablation.py --weights WEIGHTS --parts baselines --budgets 0.5
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from budget import largest_share
from channel_baselines import fold_, gram_ridge_
from cifar_data import batches
from hybrid import Images, add_row
from hybrid_budget import inner_pruning, largest_keep
from levels_recipe import run_dense_
from torch import nn
from unlabelled import QUICK, accuracy, dense_networks, facts_of, open_images, parser_of, timed

from norton_plugin import compress
from norton_plugin.calibration import calibrate, reestimate_batch_norm_
from norton_plugin.calibration.places import LayerPlace
from norton_plugin.recipe import Budget, Calibration, Decomposition, Distillation, Recipe
from norton_plugin.zoo import ModelSource

_BATCH = 50
_EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
_LEVELS = ("filter", "layer", "auto")
Sample = list[torch.Tensor]
Made = Callable[[], tuple[nn.Module, float, float]]


def with_everything(budget: float, seed: int, count: int, level: str = "layer") -> Recipe:
    """Return the recipe whose steps are left out one by one."""
    return Recipe(
        budget=Budget(macs=budget),
        decomposition=Decomposition(level=level, **QUICK),  # type: ignore[arg-type]
        calibration=Calibration(fit=True, images=count, seed=seed),
        distillation=Distillation(passes=2, seed=seed),
    )


def without_streams(places: list[LayerPlace]) -> list[LayerPlace]:
    """Let every layer be fitted to its own dense output, whatever the stream that it is added to has lost."""
    return [dataclasses.replace(place, other=None) for place in places]


def step_variants(source: ModelSource, budget: float, seed: int, sample: Sample) -> dict[str, Made]:
    """Return the variants of the steps by name."""
    whole = with_everything(budget, seed, sum(map(len, sample)))
    unlearned = dataclasses.replace(whole, distillation=Distillation())
    unfitted = dataclasses.replace(unlearned, calibration=dataclasses.replace(whole.calibration, fit=False))
    plain_norms = dataclasses.replace(whole, calibration=dataclasses.replace(whole.calibration, batch_norm=False))

    def streamless() -> tuple[nn.Module, float, float]:
        known = calibrate.trace_layers
        with patch.object(calibrate, "trace_layers", lambda *of: without_streams(known(*of))):
            return compressed(source, whole, sample)

    def one_share() -> tuple[nn.Module, float, float]:
        share = Decomposition(level="layer", share=largest_share(source, budget), **QUICK)
        return compressed(source, dataclasses.replace(whole, budget=Budget(), decomposition=share), sample)

    def unmeasured() -> tuple[nn.Module, float, float]:
        sizes = compress(source.model, _EXAMPLE, Recipe(budget=whole.budget, decomposition=whole.decomposition)).recipe
        return compressed(
            source, dataclasses.replace(sizes, calibration=whole.calibration, distillation=whole.distillation), sample
        )

    return {
        "every step": lambda: compressed(source, whole, sample),
        "without distillation": lambda: compressed(source, unlearned, sample),
        "without fit and distillation": lambda: compressed(source, unfitted, sample),
        "distillation without fit": lambda: compressed(
            source, dataclasses.replace(unfitted, distillation=whole.distillation), sample
        ),
        "without the error of the stream in targets": streamless,
        "without correction of norms": lambda: compressed(source, plain_norms, sample),
        "sizes by errors of weights (no images)": unmeasured,
        "one share for all layers": one_share,
    }


def level_variants(source: ModelSource, budget: float, seed: int, sample: Sample) -> dict[str, Made]:
    """Return the fitted model at every level by name."""

    def fitted(level: str) -> tuple[nn.Module, float, float]:
        whole = with_everything(budget, seed, sum(map(len, sample)), level)
        return compressed(source, dataclasses.replace(whole, distillation=Distillation()), sample)

    return {f"level {level}": (lambda level=level: fitted(level)) for level in _LEVELS}  # type: ignore[misc]


def baseline_variants(source: ModelSource, budget: float, seed: int, sample: Sample) -> dict[str, Made]:
    """Return what can be done for the channels that were removed, by name."""
    keep = largest_keep(source, budget)
    count = sum(map(len, sample))
    cut = Recipe(pruning=inner_pruning("l2", keep), calibration=Calibration(images=count, seed=seed))

    def helped(change_: Callable[[nn.Module, nn.Module, dict[str, list[int]]], None]) -> tuple[nn.Module, float, float]:
        model, report = compress(source.model, _EXAMPLE, cut)
        lost = {name: cut for name, cut in report.pruning.removed.items() if name.endswith(".conv1")}
        kept = {name: cut.kept_outputs(source.model.get_submodule(name).out_channels) for name, cut in lost.items()}  # type: ignore[arg-type]
        change_(source.model, model, kept)
        reestimate_batch_norm_(model, sample, call=lambda own, x: own(x), images=count)
        return model, report.macs_after / report.macs_before, report.parameters_after / report.parameters_before

    fitting = dataclasses.replace(cut, calibration=dataclasses.replace(cut.calibration, fit=True))
    return {
        "as cut": lambda: compressed(source, cut, sample),
        "least squares by Gram matrices (GRAIL)": lambda: helped(
            lambda dense, model, kept: gram_ridge_(dense, model, kept, sample)
        ),
        "folding by k-means": lambda: helped(lambda dense, model, kept: fold_(dense, model, kept, seed=seed)),
        "compensated": lambda: compressed(source, fitting, sample),
    }


def compressed(source: ModelSource, recipe: Recipe, sample: Sample) -> tuple[nn.Module, float, float]:
    """Return the compressed model, its MACs and its parameters as shares of the dense model's."""
    model, report = compress(source.model, _EXAMPLE, recipe, calibration=sample)
    return model, report.macs_after / report.macs_before, report.parameters_after / report.parameters_before


_PARTS = {"steps": step_variants, "levels": level_variants, "baselines": baseline_variants}


def rows(
    source: ModelSource, part: str, budget: float, seed: int, images: Images, count: int
) -> Iterator[dict[str, Any]]:
    """Carry out the variants of one part."""
    sample = batches(images.train.subset(count, seed=seed), source, size=_BATCH)
    for name, make in _PARTS[part](source, budget, seed, sample).items():
        (model, macs, parameters), seconds = timed(make)
        run_dense_(model)
        yield {
            "part": part,
            "variant": name,
            "macs_share": round(macs, 4),
            "parameters_share": round(parameters, 4),
            "top1": accuracy(model, source, images),
            **seconds,
        }


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = parser_of(__doc__, networks=["resnet20"], test_images=10000)
    parser.add_argument("--parts", nargs="+", default=list(_PARTS), choices=list(_PARTS))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.16, 0.32])
    arguments = parser.parse_args()
    images = open_images(arguments)
    facts = facts_of("ablation.py")
    for name, source, dense in dense_networks(arguments, images):
        for budget in arguments.budgets:
            for seed in arguments.seeds:
                for part in arguments.parts:
                    for found in rows(source, part, budget, seed, images, arguments.count):
                        row = {"network": name, "budget": budget, "seed": seed, "top1_dense": dense}
                        row |= {"calibration_images": arguments.count, "test_images": len(images.test), **found}
                        print(row, flush=True)
                        label = f"{name} {found['variant']} {budget} {arguments.count} images seed {seed}"
                        add_row(arguments.output / "ablation.json", label, row, facts)


if __name__ == "__main__":
    main()
