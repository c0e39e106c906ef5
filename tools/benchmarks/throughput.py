"""Speed of whole models as they are delivered: dense, compressed and pruned by Torch-Pruning, in one run.

Weights are random: it is the time alone that is asked for. Models are compressed, lowered and folded by the package
itself, and timed by `norton_plugin.bench`; detectors whole, those of two stages on the same regions (same_regions.py).
Added to ``throughput.json`` after every point.

    OMP_NUM_THREADS=1 python tools/benchmarks/throughput.py
    OMP_NUM_THREADS=1 python tools/benchmarks/throughput.py --models ResNet-50 --points "keep 0.6" --threads 1 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from delivered_speed import RUNTIMES, settings_of
from hybrid import add_row
from same_regions import same_regions_
from throughput_models import MODELS, Entry, Point, loaded, magnitude_pruned

from norton_plugin import compress
from norton_plugin.bench import BenchReport, bench
from norton_plugin.deploy import prepare
from norton_plugin.deploy.choices import Forms
from norton_plugin.recipe import Pruning, Recipe


def measure(entry: Entry, point: Point, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compress a model to a point and time it."""
    torch.manual_seed(0)
    source = loaded(entry)
    if entry.detector:  # random weights may find nothing: no box would then be seen by masks and keypoints
        same_regions_(source.model)
    model, report = compress(source.model, source.example_inputs, _recipe(point), forward_fn=source.forward_fn)
    forms: Forms = "static"
    if point.budget.given:
        forms = prepare(model, source.example_inputs, forms="measured", forward_fn=source.forward_fn).deployment.forms
    settings: dict[str, Any] = {
        "runtimes": RUNTIMES,
        "threads": arguments.threads,
        "batches": entry.batches,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "forward_fn": source.forward_fn,
        "timed_fn": source.timed_fn,
        "export_forward": source.export_fn,
        "compile": arguments.compile,
        "forms": forms,
        "clock": time.process_time if arguments.threads == [1] else time.perf_counter,
    }
    found = bench(source.model, model, source.example_inputs, **settings)
    row = {
        "macs_dense": found.macs_dense,
        "macs": found.macs,
        "parameters_dense": found.parameters_dense,
        "parameters": found.parameters,
        "load_average": round(os.getloadavg()[0], 2),
        **_figures(found),
    }
    if not entry.detector:
        pruned = magnitude_pruned(source, report.macs_after)
        peer = bench(source.model, pruned, source.example_inputs, **settings | {"forms": "static"}, layers=False)
        row["torch_pruning"] = {"macs": peer.macs, "parameters": peer.parameters, **_figures(peer)}
    return row


def _recipe(point: Point) -> Recipe:
    pruning = Pruning(keep=point.keep, round_to=point.round_to)
    parts: dict[str, Any] = {"scope": point.scope, "decomposition": point.decomposition, "budget": point.budget}
    return Recipe(pruning=pruning, verify=False, **parts)


def _figures(report: BenchReport) -> dict[str, Any]:
    """Return what the table needs of a benchmark."""
    slow = [layer.name for layer in report.layers if layer.speed_up < 1 / 1.05]
    return {
        "macs_ratio": round(report.macs_ratio, 3),
        "file_macs_ratio": round(report.file_macs_ratio or report.macs_ratio, 3),
        "settings": settings_of(report.to_dict()),
        "layers": len(report.layers),
        "layers_slower_than_dense": slow,
        "left": [list(entry) for entry in report.left],
    }


def main() -> None:
    """Run what is asked for and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--points", default="", metavar="TEXT", help="only points whose names hold this")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="numbers of threads, one after the other")
    parser.add_argument("--compile", action="store_true", help="time models compiled by torch.compile, too")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each")
    parser.add_argument("--seconds", type=float, default=30.0, help="no further round begins after so long")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder of throughput.json")
    arguments = parser.parse_args()
    facts = {
        "command": "OMP_NUM_THREADS=1 python tools/benchmarks/throughput.py",
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "openvino", "torch-pruning")},
    }
    for name in arguments.models:
        for point in (point for point in MODELS[name].points if arguments.points in point.name):
            row = {"model": name, "point": point.name, "size": MODELS[name].size}
            row |= measure(MODELS[name], point, arguments)
            print(json.dumps(row), flush=True)
            several = "" if arguments.threads == [1] else f", threads {' '.join(map(str, arguments.threads))}"
            add_row(arguments.output / "throughput.json", f"{name}: {point.name}{several}", row, facts)


if __name__ == "__main__":
    main()
