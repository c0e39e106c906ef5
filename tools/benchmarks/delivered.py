"""Latency of compressed models as a user gets them: loaded, lowered and folded, measured, against the dense model.

    OMP_NUM_THREADS=1 python tools/benchmarks/delivered.py

Batch 1, one thread, random weights (it is the time alone that is asked for), everything of one model in turns.
``separable`` is what a loaded artefact ran in before forms were chosen. Written after every model.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quiet_timing import METHOD, middle, repeated
from quiet_timing import prepare as prepare_timing
from torch import nn

from norton_plugin import CPDBlock, Recipe, compress
from norton_plugin.cost import count_cost
from norton_plugin.deploy import prepare
from norton_plugin.modules.running import run_model
from norton_plugin.zoo import ModelSource, load_source

MODELS = {
    "ResNet-34": ("timm:resnet34", 224),
    "ResNet-50": ("timm:resnet50", 224),
    "RetinaNet R50-FPN": ("mmdet:retinanet/retinanet_r50_fpn_1x_coco", 256),
}
POINTS = ((1, 1.0), (1, 0.7), (3, 1.0), (3, 0.7))


def call(source: ModelSource, model: nn.Module) -> Callable[[], Any]:
    """Return what runs a model on the source's example."""
    return partial(run_model, model, source.example_inputs, source.forward_fn)


def macs(source: ModelSource, model: nn.Module) -> int:
    """Count the MACs of a model, blocks by their factors."""
    return count_cost(model, call(source, model)).macs


def compressed(source: ModelSource, rank: int, keep: float) -> nn.Module:
    """Return the source's model at one point, decomposed in few sweeps: its accuracy is not asked for."""
    recipe = {"decomposition": {"rank": rank, "sweeps": 3, "restarts": 1}, "pruning": {"keep": keep}, "verify": False}
    model, _ = compress(source.model, source.example_inputs, Recipe.from_dict(recipe), forward_fn=source.forward_fn)
    return model.eval()


def variants(source: ModelSource, model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, int]]:
    """Return a compressed model as it was delivered and as it is, and how many blocks run in each measured form."""
    separable, measured = copy.deepcopy(model), prepare_as(source, model, "measured")
    for block in separable.modules():
        if isinstance(block, CPDBlock):
            block.form = "separable"
    found = {
        "separable": separable,
        "loaded": model,
        "static": prepare_as(source, model, "static").model,
        "measured": measured.model,
    }
    forms = [choice.form for choice in measured.table]
    return found, {form: forms.count(form) for form in sorted(set(forms))}


def prepare_as(source: ModelSource, model: nn.Module, forms: Any) -> Any:
    """Return a model prepared on the source's example."""
    return prepare(model, source.example_inputs, forms=forms, forward_fn=source.forward_fn)


def measure(name: str, rank: int, keep: float, rounds: int) -> dict[str, Any]:
    """Return the row of one model at one point."""
    spec, size = MODELS[name]
    source = load_source(spec, input_size=size)
    model = compressed(source, rank, keep)
    found, forms = variants(source, model)
    dense = {"dense": source.model, "dense, folded": prepare_as(source, source.model, "measured").model}
    calls = {key: call(source, variant) for key, variant in {**dense, **found}.items()}
    [timed] = repeated(calls, runs=1, rounds=rounds, budget=30.0)
    ratio = macs(source, source.model) / macs(source, model)
    best = timed["dense, folded"]
    return {
        "model": name,
        "size": size,
        "rank": rank,
        "keep": keep,
        "macs_ratio": middle([ratio]),
        "ms": {key: middle([1e3 * seconds]) for key, seconds in timed.items()},
        "speedup_over_dense": {key: middle([timed["dense"] / timed[key]]) for key in found},
        "speedup_over_folded_dense": {key: middle([best / timed[key]]) for key in found},
        "efficiency": middle([best / timed["measured"] / ratio]),
        "forms": forms,
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each model")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for delivered.json")
    arguments = parser.parse_args()
    prepare_timing()
    torch.manual_seed(0)
    rows = []
    for name in MODELS:
        for rank, keep in POINTS:
            rows.append(measure(name, rank, keep, arguments.rounds))
            print(rows[-1], flush=True)
            content = {
                "command": "OMP_NUM_THREADS=1 python tools/benchmarks/delivered.py",
                "method": METHOD,
                "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
                "torch": torch.__version__,
                "rows": rows,
            }
            (arguments.output / "delivered.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
