"""Prune, decompose, then quantise: what each step adds in accuracy and speed, in one runtime.

    OMP_NUM_THREADS=1 python tools/benchmarks/int8.py --weights WEIGHTS
    OMP_NUM_THREADS=1 python tools/benchmarks/int8.py --weights WEIGHTS --networks resnet50

ResNet-20 and ResNet-56 on CIFAR-10 (JPEG): the published weights, no fine-tuning, BatchNorm statistics from 1,024
training images; ranges of int8 from 512 others; accuracy on test images. ResNet-50 of timm at 224 has random weights:
it is the time alone that is asked for. Each measurement adds a row to ``int8.json``, so networks and variants can be
run one by one. Milliseconds are processor time of one image on one thread, fp32 and int8 measured in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nncf
import onnxruntime
import openvino
import torch
from cifar_data import add_arguments, batches, load_images, load_resnet
from hybrid import add_row
from torch import Tensor, nn

from norton_plugin import CPDBlock, compress
from norton_plugin.calibration import reestimate_batch_norm_
from norton_plugin.cost import count_cost
from norton_plugin.export import RUNTIMES, Int8, export
from norton_plugin.export.comparison import compare
from norton_plugin.export.int8 import int8_path, quantize
from norton_plugin.export.processor import int8_instructions, processor_name
from norton_plugin.recipe import Decomposition, Pruning, Recipe, Scope
from norton_plugin.zoo import load_source

BATCH_NORM, RANGES = 1024, 512
_BLOCKS = Scope(include=("layer*",))
RECIPES = {
    "dense": None,
    "pruned": Recipe(scope=_BLOCKS, pruning=Pruning(keep=0.75, round_to=4)),
    "decomposed": Recipe(scope=_BLOCKS, decomposition=Decomposition(rank=4)),
    "both": Recipe(scope=_BLOCKS, decomposition=Decomposition(rank=4), pruning=Pruning(keep=0.75, round_to=4)),
    "shared": Recipe(scope=_BLOCKS, decomposition=Decomposition(rank=4, level="layer")),
}
FORMS = ("static", "depthwise")


def variants(names: list[str]) -> list[tuple[str, str]]:
    """Return recipes with forms: a network without blocks has one form only."""
    return [(name, form) for name in names for form in FORMS if form == "static" or name not in ("dense", "pruned")]


def compressed(model: nn.Module, name: str, example: tuple[Tensor, ...]) -> nn.Module:
    """Return a network after a recipe."""
    recipe = RECIPES[name]
    return model if recipe is None else compress(model, example, recipe)[0]


def forms_of(model: nn.Module, form: str) -> Any:
    """Return the forms as ``prepare`` takes them."""
    if form == "static":
        return form
    return {name: form for name, module in model.named_modules() if isinstance(module, CPDBlock)}


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures hang on."""
    return {
        "command": "OMP_NUM_THREADS=1 python tools/benchmarks/int8.py --weights WEIGHTS",
        "data": f"CIFAR-10 (JPEG), {arguments.count} test images; no fine-tuning",
        "machine": {
            "processor": processor_name(),
            "int8_instructions": int8_instructions(),
            "threads": 1,
        },
        "versions": {module.__name__: module.__version__ for module in (torch, onnxruntime, openvino, nncf)},
    }


def measure(
    model: nn.Module, form: str, settings: Int8, row: dict[str, Any], path: Path, about: dict[str, Any]
) -> None:
    """Export one network, quantise it for each runtime, and add the rows."""
    example = settings.calibration[0]
    cost = count_cost(model, lambda: model(example))
    row |= {"form": form, "mega_macs": round(cost.macs / 1e6, 2), "parameters": cost.parameters}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export(
            model,
            example,
            file,
            int8=replace(settings, images=settings.calibration[:1], labels=None),
            forms=forms_of(model, form),
        )
        for runtime in RUNTIMES:
            target, own = int8_path(file, runtime), replace(settings, runtime=runtime)
            quantize(file, target, own)
            found = asdict(compare(file, target, own, rounds=40, budget=20.0))
            found.pop("path")
            result = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
            print({**row, **result}, flush=True)
            add_row(path, f"{row['network']} {row['variant']} {form} {runtime}", {**row, **result}, about)


def run_cifar(name: str, arguments: argparse.Namespace) -> None:
    """Measure a network on CIFAR-10."""
    source = load_resnet(name, arguments.weights)
    train, test = (load_images(arguments.images, split) for split in ("train", "test"))
    statistics = batches(train.subset(BATCH_NORM, seed=0), source)
    ranges = torch.cat(batches(train.subset(RANGES, seed=1), source)).split(1)
    chosen = test.subset(arguments.count, seed=0)
    images, labels = torch.cat(batches(chosen, source)).split(1), chosen.labels.tolist()
    for variant, form in variants(arguments.variants):
        model = compressed(source.model, variant, source.example_inputs)
        if variant != "dense":
            reestimate_batch_norm_(model, statistics, call=lambda net, x: net(x), images=BATCH_NORM)
        row = {"network": name, "variant": variant}
        settings = Int8(ranges, images, labels)
        measure(model.eval(), form, settings, row, arguments.output / "int8.json", facts(arguments))


def run_resnet50(arguments: argparse.Namespace) -> None:
    """Measure the speed of ResNet-50."""
    torch.manual_seed(0)
    source = load_source("timm:resnet50")
    images = torch.randn(8, 3, 224, 224).split(1)
    for variant, form in variants(arguments.variants):
        model = compressed(source.model, variant, source.example_inputs)
        row = {"network": "resnet50", "variant": variant}
        measure(model.eval(), form, Int8(images), row, arguments.output / "int8.json", facts(arguments))


def main() -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56", "resnet50"])
    parser.add_argument("--variants", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--count", type=int, default=2000, help="test images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.networks:
        if name == "resnet50":
            run_resnet50(arguments)
        else:
            run_cifar(name, arguments)


if __name__ == "__main__":
    main()
