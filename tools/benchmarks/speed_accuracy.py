"""Speed against accuracy of the same models: the picture at the top of the README.

Accuracies are those of ``hybrid_resnet20.json`` and ``bccd.json``, after fine-tuning. Their models are built again,
without the weights, which time does not depend on, and timed against the dense model in one run; a model whose MACs
are not those of the file is refused.

    OMP_NUM_THREADS=1 python tools/benchmarks/speed_accuracy.py          measure, then draw
    python tools/benchmarks/speed_accuracy.py --draw                     draw what was measured
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import quiet_timing
import torch
from cifar_data import machine
from hybrid import recipe_for
from speed_accuracy_plot import draw
from torch import Tensor, nn

from norton_plugin import Recipe, compress, load_source
from norton_plugin.deploy import prepare

RUNS = 3
BATCHES = {"ResNet-20, CIFAR-10": 64, "RetinaNet R18, blood cells": 1}
# What the options of bccd.json come to; names as there.
DETECTORS: dict[str, dict[str, Any]] = {
    "hybrid, rank 5, distilled": {"decomposition": {"rank": 5}, "pruning": {"keep": 0.8, "round_to": 4}},
    "decomposition, distilled": {"decomposition": {"rank": 3, "ranks": {"bbox_head": 4}}, "pruning": {"keep": 1.0}},
    "pruning": {"pruning": {"keep": 0.7, "round_to": 4}},
}


class Called(nn.Module):
    """A model with the function that runs it."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Any], Any] | None) -> None:
        super().__init__()
        self.model = model
        self.run = run or (lambda net, inputs: net(*inputs))

    def forward(self, image: Tensor) -> Any:
        """Run the model on a batch."""
        return self.run(self.model, (image,))


def checked(model: nn.Module, inputs: Any, recipe: Recipe, macs: int, run: Any) -> nn.Module:
    """Return the compressed model; one of other MACs than the file's would be another model."""
    found = compress(model, inputs, recipe, forward_fn=run)
    if found.report.macs_after != macs:
        raise SystemExit(f"{found.report.macs_after} MACs, the measured model had {macs}: {recipe}")
    return found.model


def classifiers(folder: Path) -> tuple[dict[str, nn.Module], dict[str, dict[str, float]], Tensor]:
    """Return ResNet-20 dense and compressed, with their shares of the MACs and accuracies, and a batch."""
    rows = json.loads((folder / "hybrid_resnet20.json").read_text())["variants"]
    source = load_source("cifar:resnet20")
    models: dict[str, nn.Module] = {"dense": source.model}
    for name, row in rows.items():
        if name != "dense":
            keeps = row["setting"].get("keep", 1.0), row["setting"].get("keep_layer3", 1.0)
            recipe = recipe_for(name.split()[0], *keeps)
            models[name] = checked(source.model, source.example_inputs, recipe, row["macs"], None)
    batch = torch.randn(BATCHES["ResNet-20, CIFAR-10"], 3, 32, 32)
    called = {name: Called(model, None) for name, model in models.items()}
    known = {name: _known(row, row["top1_after_finetuning"]) for name, row in rows.items()}
    return called, known, batch


def detectors(folder: Path) -> tuple[dict[str, nn.Module], dict[str, dict[str, float]], Tensor]:
    """Return the thin RetinaNet dense and compressed, with their shares of the MACs and mAP, and an image."""
    rows = json.loads((folder / "bccd.json").read_text())["variants"]
    config = Path(__file__).parents[2] / "configs/bccd/retinanet_r18-thin_bccd.py"
    source = load_source(f"mmdet:{config}", input_size=(256, 320))
    models = {"dense": source.model}
    for name, recipe in DETECTORS.items():
        whole = Recipe.from_dict(recipe)
        models[name] = checked(source.model, source.example_inputs, whole, rows[name]["macs"], source.forward_fn)
    image = torch.randn(BATCHES["RetinaNet R18, blood cells"], 3, 256, 320)
    called = {name: Called(model, source.forward_fn) for name, model in models.items()}
    return called, {name: _known(rows[name], rows[name]["finetuned_mean"]["map"]) for name in models}, image


def _known(row: Mapping[str, Any], accuracy: float) -> dict[str, float]:
    return {"macs_share": row.get("macs_share", 1.0), "accuracy": accuracy}


def measure(
    models: Mapping[str, nn.Module], known: Mapping[str, dict[str, float]], example: Tensor
) -> list[dict[str, Any]]:
    """Return a row for each model, with the median of its speed-up over several runs."""
    ready = {name: prepare(model, example, forms="measured").model for name, model in models.items()}
    calls = {name: (lambda model=model: model(example)) for name, model in ready.items()}
    runs = quiet_timing.repeated(calls, runs=RUNS)
    return [
        {
            "name": name,
            **known[name],
            "ms": round(1e3 * quiet_timing.middle([run[name] for run in runs]), 3),
            "speed_up": round(quiet_timing.middle([run["dense"] / run[name] for run in runs]), 3),
        }
        for name in ready
    ]


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description="Speed against accuracy of the same models.")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    record = arguments.results / "speed_accuracy.json"
    if not arguments.draw:
        quiet_timing.prepare()
        torch.manual_seed(0)
        panels = {
            name: measure(*make(arguments.results))
            for name, make in zip(BATCHES, (classifiers, detectors), strict=True)
        }
        facts = {
            "command": "OMP_NUM_THREADS=1 python tools/benchmarks/speed_accuracy.py",
            "method": quiet_timing.METHOD,
            "batches": BATCHES,
            "machine": machine(),
            "panels": panels,
        }
        record.write_text(json.dumps(facts, indent=1) + "\n")
    draw(json.loads(record.read_text()), arguments.results / "speed_accuracy.svg")


if __name__ == "__main__":
    main()
