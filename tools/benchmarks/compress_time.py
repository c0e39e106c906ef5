"""Time the whole of `compress` at the filter level and at the layer level, each in a process of its own.

    python tools/benchmarks/compress_time.py --label after

Weights are random: nothing is downloaded. The sizes at the layer level are those that cost no more MACs than the rank
at the filter level. Rows of other labels, such as those of an earlier version, stay in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODELS = {
    "ResNet-18": ("timm:resnet18", 224),
    "ResNet-50": ("timm:resnet50", 224),
    "YOLOX-tiny": ("mmdet:yolox/yolox_tiny_8xb8-300e_coco", 640),
    "Faster R-CNN": ("mmdet:faster_rcnn/faster-rcnn_r50_fpn_1x_coco", 800),
}


def measure(name: str, level: str, rank: int) -> dict[str, Any]:
    """Compress one model in this process.

    Args:
        name: Of the table.
        level: "filter" or "layer".
        rank: Per filter, or what costs no more MACs.

    Returns:
        JSON-able figures.
    """
    import torch

    from norton_plugin import compress
    from norton_plugin.recipe import Decomposition, Recipe
    from norton_plugin.zoo import load_source

    torch.set_num_threads(1)
    torch.manual_seed(0)
    source, size = MODELS[name]
    loaded = load_source(source, input_size=size)
    recipe = Recipe(decomposition=Decomposition(rank=rank, level=level))
    start, processor = time.perf_counter(), time.process_time()
    _, report = compress(loaded.model, loaded.example_inputs, recipe, forward_fn=loaded.forward_fn)
    errors = [layer.nmse_layer for layer in report.decomposition.layers if layer.nmse_layer is not None]
    return {
        "processor_seconds": round(time.process_time() - processor, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "layers": len(report.decomposition.layers),
        "mean_nmse": round(sum(errors) / len(errors), 4),
        "macs_share": round(report.macs_after / report.macs_before, 4),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Parse the arguments, run each model at each level and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of the table; default: all")
    parser.add_argument("--label", default="after", help="of the rows, such as 'before' for an earlier version")
    parser.add_argument("--rank", type=int, default=3, help="rank at the filter level")
    parser.add_argument("--output", type=Path, default=Path("docs/results/compress_time.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.models[0], arguments.worker, arguments.rank)))
        return
    content: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    content |= {
        "command": shlex.join(
            ["python", "tools/benchmarks/compress_time.py", *arguments.models, "--label", arguments.label]
        ),
        "rank": arguments.rank,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1},
    }
    rows = content.setdefault("models", {})
    for name in arguments.models or list(MODELS):
        for level in ("filter", "layer"):
            command = [sys.executable, "-W", "ignore", __file__, name, "--worker", level, "--rank", str(arguments.rank)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            row = json.loads(done.stdout.strip().splitlines()[-1])
            rows.setdefault(name, {}).setdefault(arguments.label, {})[level] = row
            print(name, arguments.label, level, row, flush=True)
            arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
