"""A wide classifier on unlabelled images: ResNet-26 of timm (1x1 layers of up to 2048 channels) at 64 pixels.

The model is trained here first, on CIFAR-10 enlarged to 64 pixels, by AdamW for a few epochs, and kept in the file
``--trained``. Then it is compressed to budgets of MACs or of milliseconds: sizes without images and BatchNorm
statistics re-estimated on them (``data-free``); sizes from measured sensitivities and layers fitted to the images
(``fitted``); channels pruned as well where that is better (``both``); and two passes of learning from the dense model
besides (``distilled``). No label is used. Each result is a row of ``wide.json``: accuracy, and the time of the model as
it is delivered beside the dense one.

    OMP_NUM_THREADS=1 python tools/benchmarks/wide.py
    OMP_NUM_THREADS=1 python tools/benchmarks/wide.py --of latency --budgets 0.5 --steps both
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar_data import batches, machine
from delivered_speed import delivered_speed
from hybrid import Images, add_row
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from unlabelled import QUICK, accuracy, timed

from norton_plugin import CompressionReport, compress
from norton_plugin.mm import PackedImages, pack_folder
from norton_plugin.mm.classification.packed import cache_folder
from norton_plugin.recipe import Budget, Calibration, Decomposition, Distillation, Recipe
from norton_plugin.zoo import ModelSource, load_source

SIDE = 64
_TRAINING: dict[str, Any] = {"lr": 2e-3, "weight_decay": 0.05, "batch_size": 128}
_STEPS = ("data-free", "fitted", "both", "distilled")


def open_model(name: str, weights: Path | None) -> ModelSource:
    """Build the classifier for ten classes, with its weights where there are some."""
    torch.manual_seed(0)
    source = load_source(f"timm:{name}", num_classes=10, input_size=SIDE, checkpoint=weights)
    source.model.eval()
    return source


def train(source: ModelSource, images: Images, epochs: int) -> None:
    """Train in place: one cycle of the rate, mirrored and shifted images, bfloat16 where that is safe."""
    model, data = source.model.train().to(memory_format=torch.channels_last), images.train
    size = _TRAINING["batch_size"]
    steps = epochs * (len(data) // size)
    optimizer = torch.optim.AdamW(model.parameters(), _TRAINING["lr"], weight_decay=_TRAINING["weight_decay"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _TRAINING["lr"], total_steps=steps, pct_start=0.2)
    done, begin = 0, time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(size)[: len(data) // size]:
            (x,) = batches(augmented(data, part), source, size=size)
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(x.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(scores.float(), data.labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done % 50 == 0:
                print(f"step {done}/{steps}: {loss.item():.3f}, {time.perf_counter() - begin:.0f} s", flush=True)
    model.eval().to(memory_format=torch.contiguous_format)


def augmented(data: PackedImages, chosen: torch.Tensor) -> PackedImages:
    """Return images of which half are mirrored, all shifted by up to 8 pixels."""
    shift = torch.randint(-8, 9, (2,)).tolist()
    images = torch.roll(data.images[chosen], shift, (2, 3))
    mirrored = torch.rand(len(images)) < 0.5
    images[mirrored] = images[mirrored].flip(3)
    return PackedImages(images, data.labels[chosen])


def recipe_of(step: str, limits: dict[str, float], count: int, seed: int) -> Recipe:
    """Return the recipe of a step of ``_STEPS``."""
    found = Recipe(
        budget=Budget(**limits, prune=step == "both"),
        decomposition=Decomposition(level="auto", **QUICK),
        calibration=Calibration(images=count, seed=seed, fit=step != "data-free"),
    )
    return replace(found, distillation=Distillation(passes=2, seed=seed)) if step == "distilled" else found


def compressed(
    source: ModelSource, step: str, limits: dict[str, float], seed: int, images: Images, count: int
) -> tuple[nn.Module, CompressionReport]:
    """Compress one time. Sizes of ``data-free`` are found without images; only its norms see them."""
    recipe = recipe_of(step, limits, count, seed)
    sample = batches(images.train.subset(count, seed=seed), source, size=50)
    if step == "data-free":
        planned = compress(source.model, source.example_inputs, replace(recipe, calibration=Calibration())).recipe
        recipe = replace(planned, calibration=recipe.calibration)
    return compress(source.model, source.example_inputs, recipe, calibration=sample)


def measure(
    source: ModelSource, name: str, budget: float, seed: int, images: Images, arguments: argparse.Namespace
) -> None:
    """Write the row of every step at one budget."""
    facts = {
        "command": "python tools/benchmarks/wide.py",
        "data": f"CIFAR-10 (JPEG) enlarged to {SIDE} pixels; calibration on unlabelled training images",
        "training": {**_TRAINING, "epochs": arguments.epochs},
        "machine": machine(),
    }
    dense = accuracy(source.model, source, images)
    for step in arguments.steps:
        work = partial(compressed, source, step, {arguments.of: budget}, seed, images, arguments.count)
        (model, report), seconds = timed(work)
        row = {
            "network": name,
            "of": arguments.of,
            "budget": budget,
            "step": step,
            "phases": report.budget.phases if report.budget else "",
            "seed": seed,
            "macs_share": round(report.macs_after / report.macs_before, 4),
            "parameters_share": round(report.parameters_after / report.parameters_before, 4),
            "calibration_images": arguments.count,
            "test_images": len(images.test),
            "top1_dense": dense,
            "top1": accuracy(model, source, images),
            **seconds,
            "speed": delivered_speed(source, model),
        }
        print(row, flush=True)
        of = "" if arguments.of == "macs" else f"{arguments.of} "
        label = f"{name} {step} {of}{budget} {arguments.count} images seed {seed}"
        add_row(arguments.output / "wide.json", label, row, facts)


def main() -> None:
    """Parse the arguments, train where that was not done, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet26", help="a classifier of timm")
    parser.add_argument("--images", type=Path, default=cache_folder() / "cifar10_jpeg", help="folder of train/, test/")
    parser.add_argument("--trained", type=Path, default=Path("wide.safetensors"), help="its weights, made if missing")
    parser.add_argument("--epochs", type=int, default=4, help="of the training")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.32, 0.16])
    parser.add_argument("--of", choices=("macs", "latency"), default="macs", help="what the budgets are shares of")
    parser.add_argument("--steps", nargs="+", default=list(_STEPS), choices=_STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the calibration images")
    parser.add_argument("--count", type=int, default=1000, help="calibration images, those held back included")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for the JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = Images(*(pack_folder(arguments.images / split, size=SIDE) for split in ("train", "test")))
    if not arguments.trained.exists():
        source = open_model(arguments.network, None)
        train(source, images, arguments.epochs)
        print("dense:", accuracy(source.model, source, images), flush=True)
        save_file({key: value.contiguous() for key, value in source.model.state_dict().items()}, arguments.trained)
    source = open_model(arguments.network, arguments.trained)
    for budget in arguments.budgets:
        for seed in arguments.seeds:
            measure(source, arguments.network, budget, seed, images, arguments)


if __name__ == "__main__":
    main()
