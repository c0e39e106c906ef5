"""Fine-tune ResNet-20 from what ``--budget macs=... --calibrate`` gives, by the schedule of ``hybrid.py``.

Starts: sizes from a budget, factors fitted to unlabelled training images, components shared by the whole layer
(``layer``) or of every filter (``filter``), or every filter's components with pruning (``hybrid``: that plan is carried
out, whether or not it is the best before fine-tuning). Epochs, batch, decay and augmentation are those of
``hybrid_resnet20.json``, whose dense model is the one to compare with. Runs can be made one by one: each adds its row
to ``fitted_finetune.json``.

A run with a share of distillation learns from the dense model too, fine-tuned by the schedule of ``hybrid.py``: the
model that a user of a labelled data set has. ``--teacher`` names the file of its weights, which is made where there is
none.

    python tools/benchmarks/fitted_finetune.py --weights WEIGHTS
    python tools/benchmarks/fitted_finetune.py --weights WEIGHTS --runs layer:0.16:AdamW:0.005:0.5:0:0
    python tools/benchmarks/fitted_finetune.py --weights WEIGHTS --runs layer:0.32:AdamW:0.005:0.5:0:0.9:1
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from budget import _BATCH, _EXAMPLE, _QUICK
from cifar_data import add_arguments, batches, load_images, load_resnet, machine
from hybrid import SETTINGS, Images, add_row
from hybrid_budget import plans_of
from levels_recipe import run_dense_
from safetensors.torch import load_file, save_file
from torch import nn

from norton_plugin import CompressionReport, compress
from norton_plugin.mm import evaluate, finetune
from norton_plugin.recipe import Budget, Calibration, Decomposition, Pruning, Recipe
from norton_plugin.zoo import ModelSource

# Highest rate and first beta (AdamW) or momentum (SGD) of every kind of start, as in levels_finetune.json.
RUNS = [
    "layer:0.16:AdamW:0.005:0.5:0:0",
    "layer:0.32:AdamW:0.005:0.5:0:0",
    "hybrid:0.16:AdamW:0.04:0.5:0:0",
    "hybrid:0.32:AdamW:0.04:0.5:0:0",
    "filter:0.16:AdamW:0.04:0.5:0:0",
    "filter:0.32:AdamW:0.04:0.5:0:0",
]
_OWN = ("optimizer", "lr", "momentum", "seed", "distill_weight", "distill_block_weight")


class Run(NamedTuple):
    """One fine-tuning.

    Attributes:
        start: ``layer``, ``filter`` or ``hybrid``.
        budget: MACs as a share of the dense model's.
        optimizer: ``AdamW`` or ``SGD``.
        lr: Highest learning rate.
        momentum: Of SGD; of AdamW the first beta.
        seed: Of the calibration images, their order and their augmentation.
        distill_weight: Share of the loss towards the fine-tuned dense model, in [0, 1]; 0 for labels alone.
        distill_block_weight: Of the blocks' outputs in that share, beside the logits; 0 for the logits alone.
    """

    start: str
    budget: float
    optimizer: str
    lr: float
    momentum: float
    seed: int
    distill_weight: float
    distill_block_weight: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Run:
        """Read ``start:budget:optimizer:lr:momentum:seed:distill_weight[:distill_block_weight]``."""
        start, budget, optimizer, lr, momentum, seed, *weights = text.split(":")
        return cls(start, float(budget), optimizer, float(lr), float(momentum), int(seed), *map(float, weights))


def finetuned_dense(images: Images, arguments: argparse.Namespace) -> nn.Module:
    """Return the dense model after the schedule of ``hybrid.py``: from its file, or trained now and kept in it."""
    source = load_resnet("resnet20", arguments.weights)
    model = source.model
    if not arguments.teacher.exists():
        statistics = {"mean": source.mean, "std": source.std}
        result = finetune(model, images.train, images.test, **statistics, **SETTINGS, epochs=arguments.epochs)
        print("the dense model, fine-tuned:", result.last_top1, flush=True)
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights, arguments.teacher, metadata={"top1": str(result.last_top1)})
    model.load_state_dict(load_file(arguments.teacher))
    return model.eval()


def compressed(run: Run, source: ModelSource, images: Images, count: int) -> tuple[nn.Module, CompressionReport]:
    """Compress to the budget on unlabelled images."""
    prune = run.start == "hybrid"
    recipe = Recipe(
        budget=Budget(macs=run.budget, prune=prune),
        decomposition=Decomposition(**{**_QUICK, "level": "layer" if run.start == "layer" else "filter"}),
        pruning=Pruning(criterion="output", round_to=1) if prune else Pruning(),
        calibration=Calibration(fit=True, images=count, seed=run.seed),
    )
    sample = batches(images.train.subset(count, seed=run.seed), source, size=_BATCH)
    if prune:
        (recipe,) = (plan.recipe(recipe) for plan in plans_of(source, recipe, sample) if plan.phases == "hybrid")
    return compress(source.model, _EXAMPLE, recipe, calibration=sample)


def run_one(run: Run, images: Images, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compress and fine-tune; return the row of the run."""
    source = load_resnet("resnet20", arguments.weights)
    source.model.eval()
    begin = time.process_time()
    model, report = compressed(run, source, images, arguments.count)
    seconds = time.process_time() - begin
    run_dense_(model)
    statistics = {"mean": source.mean, "std": source.std}
    row = {
        **run._asdict(),
        "calibration_images": arguments.count,
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "parameters_share": round(report.parameters_after / report.parameters_before, 4),
        "groups_pruned": len(report.pruning.groups),
        "compression_processor_seconds": round(seconds, 1),
        "top1_before_finetuning": round(evaluate(model, images.test, **statistics).top1, 2),
    }
    print(row, flush=True)
    teacher = finetuned_dense(images, arguments) if run.distill_weight else None
    begin = time.process_time()
    result = finetune(
        model,
        images.train,
        images.test,
        teacher=teacher,
        on_epoch=lambda record, total: print(f"  {record}", flush=True),
        **statistics,
        **{**SETTINGS, "epochs": arguments.epochs, **{name: getattr(run, name) for name in _OWN}},
    )
    row["top1_after_finetuning"] = result.last_top1
    row["top1_by_epoch"] = [record.top1 for record in result.history]
    row["processor_seconds"] = round(time.process_time() - begin, 1)
    return row


def main() -> None:
    """Parse the arguments and run one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        "--runs", nargs="+", default=RUNS, help="start:budget:optimizer:lr:momentum:seed:share[:block weight]"
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher", type=Path, default=Path("resnet20-finetuned.safetensors"), help="its weights")
    parser.add_argument("--count", type=int, default=1000, help="calibration images, those held back included")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = Images(load_images(arguments.images, "train"), load_images(arguments.images, "test"))
    facts = {
        "command": "python tools/benchmarks/fitted_finetune.py --weights WEIGHTS",
        "data": "CIFAR-10 (JPEG), 50,000 training and 10,000 test images",
        "model": "ResNet-20, public weights trained on the original CIFAR-10",
        "settings": {name: value for name, value in SETTINGS.items() if name not in ("optimizer", "lr", "seed")},
        "machine": machine(),
    }
    facts["settings"]["epochs"] = arguments.epochs
    for text in arguments.runs:
        row = run_one(Run.parse(text), images, arguments)
        print(text, row, flush=True)
        add_row(arguments.output / "fitted_finetune.json", text, row, facts)


if __name__ == "__main__":
    main()
