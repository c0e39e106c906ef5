"""Latency of every coupling level at equal MACs, on eight layer shapes, as ratios to the dense convolution.

    OMP_NUM_THREADS=1 python tools/benchmarks/level_latency.py

What R filter-wise components per filter cost in MACs, the other levels get as shared components, as the recipe's
``rank`` defines it. Written after every shape.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from layer_chains import dense_conv, forms_of, level_chain
from layer_shapes import CLUSTERS, LAYERS, Layer
from quiet_timing import FORMATS, METHOD, fastest, middle, prepare, repeated
from torch import nn

LEVELS = ("filter", "cluster", "layer")
Call = Callable[[], Any]


def variants(layer: Layer, level: str, rank: int, inputs: dict[str, torch.Tensor]) -> dict[tuple[str, str], Call]:
    """Return every form in every memory format of a level; none where the rank saves no MACs."""
    layout = layer.layout(level, rank)
    if layout is None:
        return {}
    return {
        (form, name): call(level_chain(layer, layout, form), inputs[name], name)
        for form in forms_of(layout)
        for name in FORMATS
    }


def call(module: nn.Module, x: torch.Tensor, memory_format: str) -> Call:
    """Return what runs a module on an input of the same memory format."""
    module = module.eval().to(memory_format=FORMATS[memory_format])
    return lambda: module(x)


def measure(layer: Layer, batch: int, ranks: list[int], runs: int) -> list[dict[str, Any]]:
    """Return one row per rank: milliseconds and speed-up of every level."""
    x = torch.randn(batch, layer.channels, layer.size, layer.size)
    inputs = {name: x.to(memory_format=memory) for name, memory in FORMATS.items()}
    candidates: dict[Any, dict[Any, Call]] = {
        "dense": {("dense", name): call(dense_conv(layer), inputs[name], name) for name in FORMATS}
    }
    for rank in ranks:
        for level in LEVELS:
            if found := variants(layer, level, rank, inputs):
                candidates[rank, level] = found
    best = fastest(candidates)
    timed = repeated({name: candidates[name][variant] for name, variant in best.items()}, runs=runs)
    rows = []
    for rank in ranks:
        if (rank, "filter") not in best:
            continue
        ratios = [run[rank, "filter"] / run[rank, "layer"] for run in timed]
        guarded = [min(run["dense"], run[rank, "filter"]) / run[rank, "layer"] for run in timed]
        rows.append(
            {
                "shape": layer.name,
                "batch": batch,
                "rank": rank,
                "dense_ms": middle([1e3 * run["dense"] for run in timed]),
                "dense_format": best["dense"][1],
                "levels": {level: entry(layer, level, rank, best, timed) for level in LEVELS},
                "layer_over_filter": middle(ratios),
                "layer_over_filter_range": [float(f"{edge(ratios):.4g}") for edge in (min, max)],
                "layer_over_filter_or_dense": middle(guarded),
            }
        )
    return rows


def entry(layer: Layer, level: str, rank: int, best: dict[Any, Any], timed: list[dict[Any, float]]) -> dict[str, Any]:
    """Return the figures of one level at one rank."""
    layout = layer.layout(level, rank)
    if layout is None:
        raise ValueError(f"{layer.name} has no {level} level at rank {rank}, although its filter level has that rank")
    form, memory_format = best[rank, level]
    return {
        "components": layout.components or layout.rank * layer.channels,
        "macs_share": round(layer.shape.macs(layout) / layer.shape.dense_macs, 4),
        "form": form,
        "format": memory_format,
        "ms": middle([1e3 * run[rank, level] for run in timed]),
        "speedup": middle([run["dense"] / run[rank, level] for run in timed]),
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3], help="filter-wise ranks: the budgets")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images per call")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of 15 calls each")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for level_latency.json")
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for batch in arguments.batches:
        for layer in LAYERS:
            found = measure(layer, batch, arguments.ranks, arguments.runs)
            rows += found
            for row in found:
                levels = " ".join(f"{name} {level['speedup']:.2f}" for name, level in row["levels"].items())
                print(f"{row['shape']} batch {row['batch']} R={row['rank']}: {levels}; {row['layer_over_filter']}")
            content = {
                "command": "OMP_NUM_THREADS=1 python tools/benchmarks/level_latency.py",
                "method": METHOD,
                "clusters": CLUSTERS,
                "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
                "torch": torch.__version__,
                "runs": arguments.runs,
                "rows": rows,
            }
            (arguments.output / "level_latency.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
