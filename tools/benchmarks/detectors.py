"""Compress full-size detectors of mmdet, each in a process of its own; time, memory and what was reached.

Weights are random: nothing is downloaded. Written to ``detectors.json`` after every model; a run that was stopped goes
on where it was, and models that are named are run again.

    python tools/benchmarks/detectors.py --threads 1 --output docs/results
    python tools/benchmarks/detectors.py --threads 1 --output docs/results --level layer
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Name for the table: config of mmdet, side of the image in pixels (that of the config where it has a fixed one).
MODELS = {
    "Faster R-CNN R50-FPN": ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", 800),
    "Mask R-CNN R50-FPN": ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco", 800),
    "Cascade R-CNN R50-FPN": ("cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco", 800),
    "Cascade Mask R-CNN R50-FPN": ("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco", 800),
    "HTC R50-FPN": ("htc/htc_r50_fpn_1x_coco", 800),
    "RetinaNet R50-FPN": ("retinanet/retinanet_r50_fpn_1x_coco", 800),
    "FCOS R50-FPN": ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco", 800),
    "ATSS R50-FPN": ("atss/atss_r50_fpn_1x_coco", 800),
    "GFL R50-FPN": ("gfl/gfl_r50_fpn_1x_coco", 800),
    "TOOD R50-FPN": ("tood/tood_r50_fpn_1x_coco", 800),
    "RTMDet-tiny": ("rtmdet/rtmdet_tiny_8xb32-300e_coco", 640),
    "RTMDet-s": ("rtmdet/rtmdet_s_8xb32-300e_coco", 640),
    "YOLOX-tiny": ("yolox/yolox_tiny_8xb8-300e_coco", 640),
    "YOLOX-s": ("yolox/yolox_s_8xb8-300e_coco", 640),
    "SSD300": ("ssd/ssd300_coco", 300),
    "SSD512": ("ssd/ssd512_coco", 512),
    "DETR R50": ("detr/detr_r50_8xb2-150e_coco", 800),
    "Mask2Former R50": ("mask2former/mask2former_r50_8xb2-lsj-50e_coco", 800),
}
# Heads of two-stage detectors are parts of their own.
_NESTED = ("roi_head", "panoptic_head")


def measure(config: str, size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compress one detector in this process.

    Args:
        config: Name of mmdet's config.
        size: Side of the image in pixels.
        arguments: Those of the command line: rank, level, keep and threads.

    Returns:
        JSON-able figures: seconds of wall clock and of processor, GiB, MACs, parameters, counts, reasons.
    """
    import torch

    from norton_plugin import NortonError, compress
    from norton_plugin.recipe import Decomposition, Pruning, Recipe
    from norton_plugin.zoo import load_source

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    start = time.perf_counter()
    row: dict[str, Any] = {"config": config, "size": size, "load_average": round(os.getloadavg()[0], 2)}
    try:
        loaded = load_source(f"mmdet:{config}", input_size=size)
        # Parameters that are constant at the start, such as those of norms, would hide mistakes from the check.
        for parameter in loaded.model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.data += 0.1 * torch.randn_like(parameter)
        row["load_seconds"] = round(time.perf_counter() - start, 1)
        decomposition = Decomposition(rank=arguments.rank, level=arguments.level)
        recipe = Recipe(decomposition=decomposition, pruning=Pruning(keep=arguments.keep))
        processor = time.process_time()
        _, report = compress(loaded.model, loaded.example_inputs, recipe, forward_fn=loaded.forward_fn)
        row["processor_seconds"] = round(time.process_time() - processor, 1)
    except NortonError as error:
        return row | {"status": "none", "reasons": [str(error)[:300]], "peak_gib": _peak()}
    return row | _figures(report) | {"peak_gib": _peak()}


def _figures(report: Any) -> dict[str, Any]:
    """Return what the report of a compressed detector comes to."""
    from norton_plugin.surgery.report import blocking

    left = blocking(report.pruning.skipped)
    errors = [layer.nmse_layer for layer in report.decomposition.layers if layer.nmse_layer is not None]
    convs = len(report.decomposition.layers) + len(report.decomposition.skipped)
    return {
        "status": report.status,
        "seconds": round(report.seconds - report.verify_seconds, 1),
        "verify_seconds": round(report.verify_seconds, 1),
        "macs_before": report.macs_before,
        "macs_after": report.macs_after,
        "parameters_before": report.parameters_before,
        "parameters_after": report.parameters_after,
        "decomposed": [len(report.decomposition.layers), convs],
        "pruned": [len(report.pruning.groups), len(report.pruning.groups) + len(left)],
        "largest_error": report.largest_error,
        "mean_nmse": round(sum(errors) / len(errors), 4) if errors else None,
        "parts": parts(report),
        "reasons": [f"{count} x {reason}" for reason, count in Counter(s.reason for s in left).most_common(4)],
    }


def parts(report: Any) -> dict[str, dict[str, int]]:
    """Return what happened to each part of the detector: MACs, layers decomposed, groups of channels pruned."""
    found: dict[str, dict[str, int]] = {}

    def of(name: str) -> dict[str, int]:
        top, *rest = name.split(".")
        part = f"{top}.{rest[0]}" if top in _NESTED and rest else top
        return found.setdefault(part, {"macs_before": 0, "macs_after": 0, "decomposed": 0, "pruned": 0})

    for layer in report.layers:
        entry = of(layer.name)
        entry["macs_before"] += layer.macs_before
        entry["macs_after"] += layer.macs_after
        entry["decomposed"] += layer.rank is not None
    for group in report.pruning.groups:
        of(group.root)["pruned"] += 1
    return found


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def in_subprocess(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one model from a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, name, "--worker", "--threads", str(arguments.threads)]
    command += ["--rank", str(arguments.rank), "--keep", str(arguments.keep), "--level", arguments.level]
    environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1][:300]
    return {"config": MODELS[name][0], "size": MODELS[name][1], "status": "error", "reasons": [reason]}


def main() -> None:
    """Parse the arguments, run what is missing and write ``detectors.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names of the table, run again; default: missing")
    parser.add_argument("--rank", type=int, default=3, help="rank, where it saves MACs")
    parser.add_argument("--level", choices=("filter", "layer"), default="filter", help="which filters share components")
    parser.add_argument("--keep", type=float, default=0.7, help="share of the channels to keep")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for detectors.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.models if name not in MODELS]:
        parser.error(f"unknown models {unknown}; expected some of {list(MODELS)}")
    if arguments.worker:
        config, size = MODELS[arguments.models[0]]
        print(json.dumps(measure(config, size, arguments)))
        return
    path = arguments.output / "detectors.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    key = "models" if arguments.level == "filter" else f"models_{arguments.level}_level"
    known = content.get(key, {})
    for name in arguments.models or [name for name in MODELS if name not in known]:
        known[name] = in_subprocess(name, arguments)
        row = known[name]
        print(
            f"{name}: {row['status']}, {row.get('seconds')} s, {row.get('peak_gib')} GiB; {row['reasons']}", flush=True
        )
        content |= {
            "command": f"python tools/benchmarks/detectors.py --threads {arguments.threads} --output docs/results",
            "recipe": {"rank": arguments.rank, "keep": arguments.keep},
            "machine": {"cores": os.cpu_count(), "threads": arguments.threads, "processor": platform.machine()},
            "versions": {package: version(package) for package in ("torch", "mmcv", "mmdet", "torch-pruning")},
            key: {name: known[name] for name in MODELS if name in known},
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
