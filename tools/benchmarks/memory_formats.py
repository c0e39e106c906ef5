"""Latency of compressed models in both memory formats: what is chosen for a model that nobody measures.

    OMP_NUM_THREADS=1 python tools/benchmarks/memory_formats.py
    OMP_NUM_THREADS=1 python tools/benchmarks/memory_formats.py timm:resnet18 --batches 1 8

Random weights, single precision, one thread, prepared by the package (lowered and folded), both formats in turns. Rows
of models that are not named stay in the file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quiet_timing import FORMATS, prepare, repeated

from norton_plugin import compress, deploy
from norton_plugin.bench.timing import of_batch
from norton_plugin.deploy.memory_format import lay_out_
from norton_plugin.modules.duplication import duplicate
from norton_plugin.modules.running import run_model
from norton_plugin.recipe import Decomposition, Pruning, Recipe
from norton_plugin.zoo import load_source

MODELS = (
    "timm:resnet18", "timm:resnet50", "timm:mobilenetv2_100", "timm:efficientnet_b0", "timm:densenet121",
    "timm:regnety_008", "timm:vgg11_bn", "timm:convnext_tiny", "timm:inception_v3", "timm:resnext50_32x4d",
    "timm:res2net50_26w_4s", "timm:mobilevit_s", "timm:ghostnet_100", "torchvision:squeezenet1_1",
    "torchvision:shufflenet_v2_x1_0", "torchvision:googlenet", "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224", "torchvision:r3d_18",
)  # fmt: skip
KEEP, RANK = 0.6, 2


def measure(source: str, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    """Compress one model and time it in both formats, at every batch size."""
    loaded = load_source(source)
    pruned = Recipe(pruning=Pruning(keep=KEEP), verify=False)
    recipes = {"pruned": pruned, f"rank {RANK}, pruned": replace(pruned, decomposition=Decomposition(rank=RANK))}
    rows = []
    for name, recipe in recipes.items():
        torch.manual_seed(0)
        model, report = compress(loaded.model, loaded.example_inputs, recipe, forward_fn=loaded.forward_fn)
        if name != "pruned" and not report.decomposition.layers:
            continue
        ready = deploy.prepare(model, loaded.example_inputs, forward_fn=loaded.forward_fn)
        placed = {key: lay_out_(duplicate(ready.model), memory) for key, memory in FORMATS.items()}
        for batch in batches:
            inputs = of_batch(loaded.example_inputs, batch)
            calls = {key: partial(run_model, each, inputs, loaded.forward_fn) for key, each in placed.items()}
            [timed] = repeated(calls, runs=1, rounds=rounds, budget=20.0)
            found = {key: round(1e3 * seconds, 2) for key, seconds in timed.items()}
            chosen = ready.deployment.memory_format
            rows.append({"model": source, "recipe": name, "batch": batch, "chosen": chosen, "ms": found})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run, print, write after every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="sources; default: all of the table")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images of a call")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for memory_formats.json")
    arguments = parser.parse_args()
    prepare()
    path = arguments.output / "memory_formats.json"
    for source in arguments.models or MODELS:
        rows = measure(source, arguments.batches, arguments.rounds)
        before = json.loads(path.read_text())["rows"] if path.exists() else []
        content = {
            "command": "OMP_NUM_THREADS=1 python tools/benchmarks/memory_formats.py",
            "torch": torch.__version__,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "keep": KEEP,
            "rows": [row for row in before if row["model"] != source] + rows,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
