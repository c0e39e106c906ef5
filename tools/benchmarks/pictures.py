"""Pictures of trained models before and after compression: where a classifier looks, what a detector finds.

Runs the commands that a user runs. ResNet-56 (CIFAR-10) is compressed to three budgets of MACs, fitted to unlabelled
training images, and drawn by ``norton cam``; the blood cell detector of ``bccd.py`` is compressed to half its MACs,
fitted likewise and not trained again, and drawn by ``norton compare``. Writes ``cam.png``, ``compare.png`` and
``pictures.json``.

    python tools/benchmarks/pictures.py --weights WEIGHTS --bccd DATA/bccd --detector WORK/work_dirs/.../epoch_36.pth
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cifar_data import machine
from hybrid import add_row

from norton_plugin.mm.classification.packed import cache_folder

# MACs left; the paper's Figure shows 50, 64 and 78 % fewer.
_BUDGETS = {"half": 0.5, "third": 0.36, "fifth": 0.22}
_DETECTOR = "mmdet:configs/bccd/retinanet_r18-thin_bccd.py"


def norton(*arguments: object) -> dict[str, Any]:
    """Run a command of ``norton`` and return what it prints as JSON.

    Raises:
        SystemExit: It failed; its message is shown.
    """
    words = [str(argument) for argument in arguments]
    print("norton", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "norton_plugin", *words, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"norton {words[0]} failed: {done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compressed(source: str, checkpoint: Path, images: Path, budget: float, output: Path) -> float:
    """Compress to a budget, fitted to images; return the share of the MACs that is left."""
    report = norton(
        *("compress", source, "--checkpoint", checkpoint, "--budget", f"macs={budget}"),
        *("--calibrate", "--data", images, "-o", output),
    )["report"]
    return round(report["macs_after"] / report["macs_before"], 4)


def cam(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Draw where ResNet-56 looks: one image of every class, a column for every budget."""
    weights = arguments.weights / "cifar10_resnet56.safetensors"
    outputs = [folder / name for name in _BUDGETS]
    shares = [
        compressed("cifar:resnet56", weights, arguments.images / "train", budget, output)
        for budget, output in zip(_BUDGETS.values(), outputs, strict=True)
    ]
    photos = [sorted(kind.iterdir())[0] for kind in sorted((arguments.images / "test").iterdir()) if kind.is_dir()]
    picture = arguments.output / "cam.png"
    found = norton("cam", *outputs, *photos, "--limit", len(photos), "--dense", weights, "-o", picture)
    return {
        "model": "ResNet-56, public weights, CIFAR-10 (JPEG); the first test image of every class",
        "macs_shares": shares,
        "layer": found["layer"],
        "mean_correlations": [round(value, 4) for value in found["mean_correlations"]],
        "same_class": [
            sum(image["classes"][0] == image["classes"][place] for image in found["images"])
            for place in range(1, len(outputs) + 1)
        ],
        "images": len(found["images"]),
        "picture": picture.name,
    }


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Draw what the blood cell detector finds, dense and compressed."""
    output, images = folder / "detector", arguments.bccd / "images"
    splits = {name: json.loads((arguments.bccd / f"{name}.json").read_text())["images"] for name in ("train", "test")}
    training = folder / "training"
    training.mkdir()
    for image in splits["train"]:
        (training / image["file_name"]).symlink_to((images / image["file_name"]).resolve())
    share = compressed(_DETECTOR, arguments.detector, training, 0.5, output)
    photos = [images / image["file_name"] for image in splits["test"][:4]]
    picture = arguments.output / "compare.png"
    found = norton("compare", output, *photos, "--dense", arguments.detector, "-o", picture)
    return {
        "model": "RetinaNet on blood cells (bccd.py), fitted, not trained again; the first images of the test split",
        "macs_share": share,
        "objects": [[image["dense"]["objects"], image["compressed"]["objects"]] for image in found["images"]],
        "speed_up": round(found["speed_up"], 3),
        "picture": picture.name,
    }


def main() -> None:
    """Parse the arguments, compress, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of cifar10_resnet56.safetensors; draws cam.png")
    parser.add_argument("--images", type=Path, default=cache_folder() / "cifar10_jpeg", help="folder of train/, test/")
    parser.add_argument("--bccd", type=Path, help="folder with images/, train.json, test.json")
    parser.add_argument("--detector", type=Path, help="checkpoint of bccd.py's dense detector; draws compare.png")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for pictures and JSON")
    arguments = parser.parse_args()
    facts = {"command": "python tools/benchmarks/pictures.py", "machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        if arguments.weights:
            add_row(arguments.output / "pictures.json", "cam", cam(arguments, Path(name)), facts)
        if arguments.bccd and arguments.detector:
            add_row(arguments.output / "pictures.json", "compare", compare(arguments, Path(name)), facts)


if __name__ == "__main__":
    main()
