"""What more ALS sweeps give where filters share many components: error of layers, accuracy of a model, and time.

ResNet-26 of timm at 64 pixels, with the weights that ``wide.py`` trains and keeps. Its 3x3 convolutions get components
shared by a whole layer, BatchNorm statistics are re-estimated, nothing else is done.

    OMP_NUM_THREADS=1 python tools/benchmarks/sweeps_of_many.py --trained wide.safetensors
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from cifar_data import batches, machine
from hybrid import Images
from unlabelled import accuracy
from wide import SIDE, open_model

from norton_plugin import compress
from norton_plugin.mm import pack_folder
from norton_plugin.mm.classification.packed import cache_folder
from norton_plugin.recipe import Calibration, Decomposition, Recipe
from norton_plugin.zoo import ModelSource

NETWORK, IMAGES, TEST_IMAGES = "resnet26", 500, 3000
SIZES: dict[str, dict[str, Any]] = {
    "MACs of rank 1 per filter": {"rank": 1},
    "a tenth of the MACs": {"share": 0.1},
    "a twentieth of the MACs": {"share": 0.05},
}
SWEEPS = (300, 900, 1800)
POINTWISE = ("*.conv1", "*.conv3", "*downsample*")


def measure(source: ModelSource, images: Images, name: str, sweeps: int) -> dict[str, Any]:
    """Decompose once; return the figures."""
    pointwise = dict.fromkeys(POINTWISE, dict.fromkeys(SIZES[name]))  # rank or share: None
    decomposition = Decomposition(**SIZES[name], level="layer", sweeps=sweeps, layers=pointwise)
    recipe = Recipe(decomposition=decomposition, calibration=Calibration(images=IMAGES), verify=False)
    sample = list(batches(images.train.subset(IMAGES, seed=0), source, size=50))
    begin = time.process_time()
    model, report = compress(source.model, source.example_inputs, recipe, calibration=sample)
    seconds = time.process_time() - begin
    errors = [layer.nmse_layer for layer in report.decomposition.layers if layer.nmse_layer is not None]
    return {
        "size": name,
        "sweeps": sweeps,
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "mean_nmse": round(sum(errors) / len(errors), 4),
        "top1": round(accuracy(model, source, images), 2),
        "processor_seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure, print, write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=cache_folder() / "cifar10_jpeg", help="folder of train/, test/")
    parser.add_argument("--trained", type=Path, default=Path("wide.safetensors"), help="weights that wide.py made")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for sweeps_of_many.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (pack_folder(arguments.images / split, size=SIDE) for split in ("train", "test"))
    images, source = Images(train, test.subset(TEST_IMAGES, seed=123)), open_model(NETWORK, arguments.trained)
    content: dict[str, Any] = {
        "command": "OMP_NUM_THREADS=1 python tools/benchmarks/sweeps_of_many.py --trained wide.safetensors",
        "machine": machine(),
        "top1_dense": accuracy(source.model, source, images),
        "test_images": TEST_IMAGES,
        "calibration_images": IMAGES,
        "rows": [],
    }
    for name in SIZES:
        for sweeps in SWEEPS:
            content["rows"].append(measure(source, images, name, sweeps))
            print(content["rows"][-1], flush=True)
            (arguments.output / "sweeps_of_many.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
