"""What a budget and a fit cost on a large model: ``norton compress`` on its own, its time and its memory.

One command in a process of its own, random weights, images of a folder resized to the model's size. Time and peak
memory are those that the operating system counts for the process, model and images included. Each run is a row of
``calibration_cost.json``.

    OMP_NUM_THREADS=1 python tools/benchmarks/calibration_cost.py --images FOLDER
    OMP_NUM_THREADS=1 python tools/benchmarks/calibration_cost.py --images FOLDER --memory 4GiB
    OMP_NUM_THREADS=2 python tools/benchmarks/calibration_cost.py --images FOLDER --models timm:resnet18 --count 128
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cifar_data import machine
from hybrid import add_row


def run(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the command once.

    Raises:
        SystemExit: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        options = ["--budget", f"macs={arguments.budget}", "--calibrate", "--seed", "0", "-o", str(out)]
        images = ["--data", str(arguments.images), "--images", str(arguments.count)]
        memory = ["--memory", arguments.memory] if arguments.memory else []
        command = [sys.executable, "-m", "norton_plugin", "compress", model, *options, *images, *memory]
        begin = time.perf_counter()
        if subprocess.run(command).returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        seconds = time.perf_counter() - begin
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads((out / "norton.json").read_text())["report"]
    fitted = report["calibration"]
    return {
        "model": model,
        "budget": arguments.budget,
        "images": arguments.count,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "memory": arguments.memory,
        "macs_share": round(report["macs_after"] / report["macs_before"], 4),
        "layers_fitted": len(fitted["layers"]),
        "fit_seconds": round(fitted["seconds"], 1),
        "divergence": {stage: round(value, 5) for stage, value in fitted["divergence"].items()},
        "wall_seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Parse the arguments, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of images, with or without classes")
    parser.add_argument("--models", nargs="+", default=["timm:resnet50"])
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--budget", type=float, default=0.5, help="share of the MACs")
    parser.add_argument("--memory", help="limit of moments and of what passes hold, such as 4GiB")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for the JSON")
    arguments = parser.parse_args()
    facts = {
        "command": "OMP_NUM_THREADS=1 python tools/benchmarks/calibration_cost.py --images FOLDER",
        "machine": machine(),
    }
    for model in arguments.models:
        row = run(model, arguments)
        print(row, flush=True)
        label = f"{model} {arguments.budget} {arguments.count} images {row['threads']} threads"
        label += f" within {arguments.memory}" if arguments.memory else ""
        add_row(arguments.output / "calibration_cost.json", label, row, facts)


if __name__ == "__main__":
    main()
