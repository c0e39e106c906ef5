"""Accuracy without labels and without fine-tuning: factors fitted to what layers see, on the networks of CIFAR-10.

Every network is decomposed at a level and at the MACs of a rank per filter (1: 16 %, 2: 32 % of ResNet-20's MACs), and
its layers are fitted to training images drawn by the calibration seed (`Recipe.calibration.fit`). Before: the plain
decomposition with BatchNorm statistics re-estimated, as in ``levels.json``. After: as it is kept by the divergence on
held-back images. No label is used. Each measurement adds a row to ``calibration.json``.

    python tools/benchmarks/calibration.py --weights WEIGHTS
    python tools/benchmarks/calibration.py --weights WEIGHTS --networks resnet56 --ranks 1 --levels layer --seeds 0
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from cifar_data import batches
from hybrid import Images, add_row
from levels_recipe import recipe_for, run_dense_
from unlabelled import accuracy, dense_networks, facts_of, open_images, parser_of, timed

from norton_plugin import compress
from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.recipe import Calibration, Scope
from norton_plugin.zoo import ModelSource

_BATCH = 50
_EXAMPLE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def measure(source: ModelSource, level: str, rank: int, seed: int, images: Images, count: int) -> dict[str, Any]:
    """Compress with and without the fit, and evaluate both."""
    sample = batches(images.train.subset(count, seed=seed), source, size=_BATCH)
    # The first convolution stays as it is; the classifier stays dense, and may be refitted.
    recipe = replace(recipe_for(level, rank), scope=Scope(exclude=("conv1",)))
    plain, _ = compress(source.model, _EXAMPLE, recipe)
    run_dense_(plain)
    reestimate_batch_norm_(plain, sample, call=lambda model, x: model(x), images=count)

    fitting = Calibration(fit=True, images=count, seed=seed)
    asked = replace(recipe, calibration=fitting)
    (fitted, report), seconds = timed(lambda: compress(source.model, _EXAMPLE, asked, calibration=sample))
    run_dense_(fitted)
    found = report.calibration
    assert found is not None  # noqa: S101  # the recipe asks for it
    decomposed = [layer for layer in found.layers if layer.decomposed]
    return {
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "top1_plain": accuracy(plain, source, images),
        "top1": accuracy(fitted, source, images),
        "kept": found.chosen,
        "divergence": {stage: round(value, 4) for stage, value in found.divergence.items()},
        "output_nmse_before": round(sum(layer.nmse_before for layer in decomposed) / len(decomposed), 4),
        "output_nmse_after": round(sum(layer.nmse_after for layer in decomposed) / len(decomposed), 4),
        "images": found.images,
        "held_back": found.held_back,
        **seconds,
    }


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = parser_of(__doc__, networks=["resnet20", "resnet56"])
    parser.add_argument("--levels", nargs="+", default=["layer", "filter"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="filter-level ranks: the budgets")
    parser.set_defaults(seeds=[0, 1, 2])
    arguments = parser.parse_args()
    images = open_images(arguments)
    facts = facts_of("calibration.py")
    path = arguments.output / "calibration.json"
    for name, source, dense in dense_networks(arguments, images):
        for rank in arguments.ranks:
            for level in arguments.levels:
                for seed in arguments.seeds:
                    row = {"network": name, "level": level, "budget_rank": rank, "seed": seed, "top1_dense": dense}
                    row |= {"test_images": len(images.test), "calibration_images": arguments.count}
                    row |= measure(source, level, rank, seed, images, arguments.count)
                    print(row, flush=True)
                    label = f"{name} {level} R={rank} {arguments.count} images seed {seed} on {len(images.test)}"
                    add_row(path, label, row, facts)


if __name__ == "__main__":
    main()
