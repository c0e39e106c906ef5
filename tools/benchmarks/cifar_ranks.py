"""Accuracy of decomposed networks without fine-tuning, rank by rank: the paper's table, on ResNet-20 and ResNet-56.

Every 3x3 convolution is decomposed at the same rank, as in the paper (also where that needs more MACs), nothing is
pruned. Accuracy is that of the whole test set, with the statistics of the dense model's BatchNorms and with
statistics re-estimated on training images; no label is used.

    python tools/benchmarks/cifar_ranks.py --weights WEIGHTS
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from cifar_data import add_arguments, batches, load_images, load_resnet, machine

from norton_plugin import CPDBlock, compress
from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.mm import evaluate
from norton_plugin.recipe import Decomposition, Recipe


def table_of(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Accuracy, NMSE and cost of one network at every rank."""
    source = load_resnet(name, arguments.weights)
    test = load_images(arguments.images, "test")
    calibration = batches(load_images(arguments.images, "train").subset(arguments.calibration), source)
    statistics = {"mean": source.mean, "std": source.std}
    model, example = source.model.eval(), torch.zeros(1, 3, 32, 32)

    def top1(net: torch.nn.Module) -> float:
        return round(evaluate(net, test, **statistics).top1, 2)

    def reestimate_(net: torch.nn.Module) -> None:
        reestimate_batch_norm_(net, calibration, call=lambda m, x: m(x), images=arguments.calibration)

    rows = []
    for rank in range(1, arguments.ranks + 1):
        recipe = Recipe(decomposition=Decomposition(rank=rank, allow_more_macs=True))
        compressed, report = compress(model, example, recipe)
        for block in compressed.modules():
            if isinstance(block, CPDBlock):
                block.form = "dense"  # all forms compute the same; on these small maps this one is the fastest
        row: dict[str, Any] = {
            "rank": rank,
            "macs_down_percent": round(100 * (1 - report.macs_after / report.macs_before), 2),
            "parameters_down_percent": round(100 * (1 - report.parameters_after / report.parameters_before), 2),
            "nmse": round(
                sum(layer.nmse_mean for layer in report.decomposition.layers) / len(report.decomposition.layers), 4
            ),
            "top1_plain": top1(compressed),
        }
        reestimate_(compressed)
        row["top1_batch_norm_reestimated"] = top1(compressed)
        rows.append(row)
        print(name, row, flush=True)
    dense = {"macs": report.macs_before, "parameters": report.parameters_before, "top1": top1(model)}
    reestimate_(model)
    dense["top1_batch_norm_reestimated"] = top1(model)
    print(name, "dense", dense, flush=True)
    return {"dense": dense, "ranks": rows}


def main() -> None:
    """Parse the arguments, measure, print and write ``cifar_ranks.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--ranks", type=int, default=8, help="highest rank")
    parser.add_argument("--calibration", type=int, default=5000, help="training images for BatchNorm statistics")
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"], choices=["resnet20", "resnet56"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    content = {
        "command": "python tools/benchmarks/cifar_ranks.py --weights WEIGHTS",
        "data": "CIFAR-10 (JPEG), all 10,000 test images; BatchNorm statistics from "
        f"{arguments.calibration} training images; no fine-tuning",
        "machine": machine(),
    }
    content |= {name: table_of(name, arguments) for name in arguments.models}
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "cifar_ranks.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
