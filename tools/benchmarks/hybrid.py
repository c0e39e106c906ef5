"""The paper's Figure 2 on ResNet-20: decomposition and pruning together against either alone, at equal MACs.

Every variant gets the MACs of decomposition alone at ``--rank`` (2: 32 % of the dense model's), its BatchNorm
statistics are re-estimated on training images, and it is fine-tuned like the others and like the dense model. Pruning
removes inner channels of the blocks; the residual streams keep their width. Variants can be run one by one, on one or
several machines: each adds its row to ``hybrid_resnet20.json``.

    python tools/benchmarks/hybrid.py --weights WEIGHTS
    python tools/benchmarks/hybrid.py --weights WEIGHTS --rank 1 --variants decomposition-rank1 hybrid-rank2
"""

from __future__ import annotations

import argparse
import fcntl
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cifar_data import add_arguments, batches, load_images, load_resnet, machine
from torch import nn

from norton_plugin import CompressionReport, compress
from norton_plugin.mm import PackedImages, evaluate, finetune
from norton_plugin.recipe import Calibration, Decomposition, Pruning, Recipe

SETTINGS: dict[str, Any] = {
    "optimizer": "SGD",
    "lr": 0.05,
    "batch_size": 128,
    "weight_decay": 5e-4,
    "warmup_epochs": 0.5,
    "crop_padding": 4,
    "flip": True,
    "seed": 0,
}


EXAMPLE = torch.zeros(1, 3, 32, 32)


class Images(NamedTuple):
    """Training and test images in memory."""

    train: PackedImages
    test: PackedImages


def recipe_for(variant: str, keep: float, last_keep: float) -> Recipe:
    """Return the recipe of a variant; ``last_keep``, the share of the last stage, fits the MACs to the number."""
    rank = int(variant.rpartition("rank")[2]) if "rank" in variant else None
    inner = {"*.conv1": keep, "layer3.*.conv1": last_keep}
    keeps = {} if variant.startswith("decomposition") else inner
    return Recipe(
        decomposition=Decomposition(rank=rank),
        pruning=Pruning(keeps=keeps, round_to=1),
        calibration=Calibration(images=5000),
    )


def fit(variant: str, model: nn.Module, example: torch.Tensor, target: int) -> tuple[Recipe, dict[str, float]]:
    """Keep as many filters as the MACs allow: first the same share everywhere, then more of the last stage."""

    def macs(keep: float, last_keep: float) -> int:
        return compress(model, example, recipe_for(variant, keep, last_keep))[1].macs_after

    if variant.startswith("decomposition"):
        return recipe_for(variant, 1.0, 1.0), {}
    sixteenths = [k for k in range(1, 16) if macs(k / 16, k / 16) <= target]
    keep = max(sixteenths, default=1) / 16
    low, high = round(64 * keep), 64
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if macs(keep, middle / 64) <= target else (low, middle)
    return recipe_for(variant, keep, low / 64), {"keep": keep, "keep_layer3": low / 64}


def cost(report: CompressionReport | None) -> dict[str, Any]:
    """MACs and parameters, absolute and as shares."""
    if report is None:
        return {}
    return {
        "macs": report.macs_after,
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "parameters": report.parameters_after,
        "parameters_share": round(report.parameters_after / report.parameters_before, 4),
        "layers_decomposed": len(report.decomposition.layers),
        "groups_pruned": len(report.pruning.groups),
    }


def add_row(path: Path, variant: str, row: dict[str, Any], facts: dict[str, Any]) -> None:
    """Add or replace one row of the JSON; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        content = json.loads(text) if text else {}
        content |= facts
        content["variants"] = content.get("variants", {}) | {variant: row}
        file.truncate(0)
        file.write(json.dumps(content, indent=1) + "\n")


def run_variant(variant: str, images: Images, target: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compress, unless the variant is the dense model, and fine-tune; return the row of the variant.

    Args:
        variant: ``dense``, or a name of `recipe_for`.
        images: Training and test images.
        target: MACs to reach.
        arguments: Of the command line.
    """
    source = load_resnet("resnet20", arguments.weights)
    model, report, setting = source.model.eval(), None, {}
    if variant != "dense":
        recipe, setting = fit(variant, model, EXAMPLE, target)
        sample = batches(images.train.subset(5000), source)
        model, report = compress(model, EXAMPLE, recipe, calibration=sample)
    statistics = {"mean": source.mean, "std": source.std}
    before = evaluate(model, images.test, **statistics).top1
    row = {**cost(report), "setting": setting, "top1_before_finetuning": round(before, 2)}
    print(variant, row, flush=True)
    result = finetune(
        model,
        images.train,
        images.test,
        epochs=arguments.epochs,
        on_epoch=lambda record, total: print(f"  {record}", flush=True),
        **statistics,
        **SETTINGS,
    )
    row["top1_after_finetuning"] = result.last_top1
    row["top1_by_epoch"] = [record.top1 for record in result.history]
    row["finetuning_seconds"] = round(result.seconds, 1)
    return row


def main() -> None:
    """Parse the arguments, compress, fine-tune, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["dense", "decomposition-rank2", "pruning", "hybrid-rank3"],
        help="dense, pruning, decomposition-rankR, hybrid-rankR",
    )
    parser.add_argument("--rank", type=int, default=2, help="the MACs of decomposition at this rank are those of all")
    parser.add_argument("--epochs", type=int, default=8, help="fine-tuning epochs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    images = Images(load_images(arguments.images, "train"), load_images(arguments.images, "test"))
    facts = {
        "command": "python tools/benchmarks/hybrid.py --weights WEIGHTS [--rank 1 --variants ...]",
        "data": "CIFAR-10 (JPEG), 50,000 training and 10,000 test images",
        "model": "ResNet-20, public weights trained on the original CIFAR-10",
        "settings": SETTINGS | {"epochs": arguments.epochs},
        "machine": machine(),
    }
    dense = load_resnet("resnet20", arguments.weights).model.eval()
    target = compress(dense, EXAMPLE, recipe_for(f"decomposition-rank{arguments.rank}", 1.0, 1.0))[1].macs_after
    for variant in arguments.variants:
        row = run_variant(variant, images, target, arguments)
        budget = "" if variant == "dense" else f" at the MACs of rank {arguments.rank}"
        add_row(arguments.output / "hybrid_resnet20.json", variant + budget, row, facts)


if __name__ == "__main__":
    main()
