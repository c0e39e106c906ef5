"""Fine-tune ResNet-20 at 16 % and 32 % of the MACs: filters of their own, in clusters, or one layer of components.

Every run starts from the blocks that the package makes of the trained network (rank 1 or 2 per filter, and as many
shared components as need no more MACs) and gets the same images, steps and schedule; the dense form runs in training.
BatchNorm trains on the statistics of each batch, so the statistics of the start do not matter and are left alone.
With ``--fit 1000`` the layers of the start are fitted to as many unlabelled training images first. Runs can be made one
by one: each adds its row to ``levels_finetune.json``.

    python tools/benchmarks/levels_finetune.py --weights WEIGHTS
    python tools/benchmarks/levels_finetune.py --weights WEIGHTS --runs layer:1:AdamW:0.005:0.5:0 --fit 1000
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from cifar_data import add_arguments, batches, load_images, load_resnet, machine
from hybrid import EXAMPLE, Images, add_row
from levels_recipe import recipe_for, run_dense_
from torch import nn

from norton_plugin import CompressionReport, compress
from norton_plugin.mm import evaluate, finetune
from norton_plugin.recipe import Calibration
from norton_plugin.zoo import ModelSource

EPOCHS = 4
SETTINGS: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": 128,
    "weight_decay": 1e-3,
    "factor_decay": 1.0,
    "warmup_epochs": 0.15 * EPOCHS,
    "crop_padding": 4,
    "flip": True,
    "val_interval": EPOCHS,
}
# The best rates in runs of a quarter of the images, at a first beta of 0.5. The usual 0.9 and SGD are there to compare.
_BEST = {
    "filter": "filter:{}:AdamW:0.04:0.5",
    "layer": "layer:{}:AdamW:0.005:0.5",
    "cluster4": "cluster4:{}:AdamW:0.005:0.5",
}
RUNS = [
    *(f"{run.format(1)}:0" for run in _BEST.values()),
    *(f"{run.format(1)}:1" for run in _BEST.values()),
    *(f"{run.format(2)}:0" for run in _BEST.values()),
    "filter:1:AdamW:0.01:0.9:0",
    "layer:1:AdamW:0.005:0.9:0",
    "filter:1:SGD:0.05:0.9:0",
    "layer:1:SGD:0.05:0.9:0",
    *(f"{run.format(2)}:1" for run in _BEST.values()),
]


class Run(NamedTuple):
    """One fine-tuning.

    Attributes:
        level: A name of `levels_recipe.recipe_for`.
        rank: R at the filter level; the other levels get its MACs.
        optimizer: ``AdamW`` or ``SGD``.
        lr: Highest learning rate.
        momentum: Of SGD; of AdamW the first beta.
        seed: Of the decomposition, the images drawn, their order and their augmentation.
    """

    level: str
    rank: int
    optimizer: str
    lr: float
    momentum: float
    seed: int

    @classmethod
    def parse(cls, text: str) -> Run:
        """Read ``level:rank:optimizer:lr:momentum:seed``."""
        level, rank, optimizer, lr, momentum, seed = text.split(":")
        return cls(level, int(rank), optimizer, float(lr), float(momentum), int(seed))


def start_of(run: Run, source: ModelSource, images: Images, count: int) -> tuple[nn.Module, CompressionReport]:
    """Decompose, and fit the layers to ``count`` images where there are to be some."""
    recipe = recipe_for(run.level, run.rank, seed=run.seed)
    if not count:
        return compress(source.model.eval(), EXAMPLE, recipe)
    recipe = replace(recipe, calibration=Calibration(fit=True, images=count, seed=run.seed))
    sample = batches(images.train.subset(count, seed=run.seed), source, size=50)
    return compress(source.model.eval(), EXAMPLE, recipe, calibration=sample)


def run_one(run: Run, images: Images, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compress and fine-tune; return the row of the run."""
    source = load_resnet("resnet20", arguments.weights)
    model, report = start_of(run, source, images, arguments.fit)
    run_dense_(model)
    statistics = {"mean": source.mean, "std": source.std}
    before = evaluate(model, images.test, **statistics).top1 if arguments.fit else None
    begin, processor = time.perf_counter(), time.process_time()
    result = finetune(
        model,
        images.train.subset(arguments.train_images, seed=run.seed),
        optimizer=run.optimizer,
        lr=run.lr,
        momentum=run.momentum,
        seed=run.seed,
        on_epoch=lambda record, total: print(f"  {record}", flush=True),
        **statistics,
        **SETTINGS,
    )
    wall, processor = time.perf_counter() - begin, time.process_time() - processor
    layers = report.decomposition.layers
    return {
        **run._asdict(),
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "parameters_share": round(report.parameters_after / report.parameters_before, 4),
        "layers": len(layers),
        "nmse": round(sum(layer.nmse_layer or 0.0 for layer in layers) / len(layers), 4),
        "fitted_images": arguments.fit,
        "top1_before": before,
        "train_images": arguments.train_images,
        "steps": EPOCHS * (arguments.train_images // SETTINGS["batch_size"]),
        "losses": [round(record.loss, 4) for record in result.history],
        "top1": round(evaluate(model, images.test, **statistics).top1, 2),
        "wall_seconds": round(wall, 1),
        "processor_seconds": round(processor, 1),
    }


def main() -> None:
    """Parse the arguments and run one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--runs", nargs="+", default=RUNS, help="level:rank:optimizer:lr:momentum:seed")
    parser.add_argument("--train-images", type=int, default=16000, help="training images of every run")
    parser.add_argument("--fit", type=int, default=0, help="images that layers are fitted to before; 0 for none")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = Images(load_images(arguments.images, "train"), load_images(arguments.images, "test"))
    facts = {
        "command": "python tools/benchmarks/levels_finetune.py --weights WEIGHTS",
        "data": f"CIFAR-10 (JPEG), {arguments.train_images:,} training images, all 10,000 test images",
        "model": "ResNet-20, public weights trained on the original CIFAR-10",
        "settings": SETTINGS,
        "machine": machine(),
    }
    for text in arguments.runs:
        row = run_one(Run.parse(text), images, arguments)
        print(text, row, flush=True)
        label = f"{text} fitted to {arguments.fit}" if arguments.fit else text
        add_row(arguments.output / "levels_finetune.json", label, row, facts)


if __name__ == "__main__":
    main()
