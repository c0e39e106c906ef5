"""Error and latency of filter level, layer level and spatial SVD at equal MACs, on 3x3 layers of stride 2.

    OMP_NUM_THREADS=1 python tools/benchmarks/strided_latency.py --weights WEIGHTS/cifar10_resnet56.safetensors

What level "auto" would take at equal MACs is held against what errs least at equal milliseconds. Weights are trained
(64 channels) or random with the spectra of trained ones (``trained_like.py``). Written after every shape.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from equal_latency import FRACTIONS, RUNTIMES, Variants, reached, variants, weights_of
from layer_chains import dense_conv, forms_of, level_chain
from layer_errors import EFFORT, errors
from layer_shapes import Layer
from quiet_timing import METHOD, fastest, middle, prepare, repeated
from torch import Tensor, nn

from norton_plugin.surgery.layouts import Layout

LAYERS = (Layer(64, 112, 2), Layer(128, 56, 2), Layer(256, 28, 2), Layer(512, 14, 2))
SHARES = (0.12, 0.18, 0.27, 0.4, 0.6)
LEVELS = ("filter", "layer", "spatial")
_METHOD = {"filter": "filter", "layer": "layer", "spatial": "svd_spatial"}  # as ``layer_errors`` names them


def layouts_of(layer: Layer) -> dict[tuple[str, float], Layout]:
    """Return what each level becomes at each share of the dense MACs, where it becomes anything."""
    found: dict[tuple[str, float], Layout] = {}
    for share in SHARES:
        macs = share * layer.shape.dense_macs
        if rank := layer.shape.highest_rank(None, macs):
            found["filter", share] = Layout("filter", None, rank)
        for level in ("layer", "spatial"):
            if layout := layer.layout_within(level, macs):  # type: ignore[arg-type]
                found[level, share] = layout
    return found


def measure(layer: Layer, runtime: str, nmse: dict[tuple[str, float], float], runs: int) -> dict[str, Any]:
    """Return the points of one shape in one runtime, what "auto" takes, and who is ahead at equal time."""
    x = torch.randn(1, layer.channels, layer.size, layer.size)
    layouts = layouts_of(layer)
    chains: dict[Any, dict[str, nn.Module]] = {"dense": {"dense": dense_conv(layer)}}
    chains |= {
        name: {form: level_chain(layer, layout, form) for form in forms_of(layout)} for name, layout in layouts.items()
    }
    candidates: dict[Any, Variants] = {name: variants(forms, x, runtime) for name, forms in chains.items()}
    best = fastest(candidates, rounds=3)
    timed = repeated({name: candidates[name][best[name]] for name in best}, runs=runs, rounds=9)
    points = [
        {
            "method": level,
            "share": share,
            "size": layout.components or layout.rank,
            "macs_share": round(layer.shape.macs(layout) / layer.shape.dense_macs, 4),
            "nmse": float(f"{nmse[level, share]:.4g}"),
            "ms": middle([1e3 * run[level, share] for run in timed]),
            "share_of_dense_time": middle([run[level, share] / run["dense"] for run in timed]),
            "variant": best[level, share],
        }
        for (level, share), layout in layouts.items()
    ]
    return {
        "shape": layer.name,
        "weights": "trained" if layer.channels <= 64 else "spectra of trained ones",
        "runtime": runtime,
        "dense_ms": middle([1e3 * run["dense"] for run in timed]),
        "points": points,
        "auto": {share: lowest({p["method"]: p["nmse"] for p in points if p["share"] == share}) for share in SHARES},
        "at_equal_time": [_at(points, fraction) for fraction in FRACTIONS],
    }


def _at(points: list[dict[str, Any]], fraction: float) -> dict[str, Any]:
    nmse = {level: reached(points, level, fraction) for level in LEVELS}
    return {"share_of_dense_time": fraction, "nmse": nmse, "lowest": lowest(nmse)}


def lowest(nmse: dict[str, Any]) -> str | None:
    """Return the level of the lowest error; None where there is none."""
    known = {level: error for level, error in nmse.items() if error is not None}
    return min(known, key=known.__getitem__) if known else None


def errors_of(layer: Layer, weights: list[Tensor]) -> dict[tuple[str, float], float]:
    """Return the NMSE of each level at each share."""
    found = {}
    for (level, share), layout in layouts_of(layer).items():
        size = layout.components or layout.rank
        found[level, share] = errors(weights, _METHOD[level], size, clusters=1)
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="cifar10_resnet56.safetensors")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of 9 calls each")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for strided_latency.json")
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for layer in LAYERS:
        nmse = errors_of(layer, weights_of(layer.channels, arguments.weights))
        for runtime in RUNTIMES:
            rows.append(measure(layer, runtime, nmse, arguments.runs))
            print(layer.name, runtime, rows[-1]["auto"], [e["nmse"] for e in rows[-1]["at_equal_time"]], flush=True)
        content = {
            "command": "OMP_NUM_THREADS=1 python tools/benchmarks/strided_latency.py --weights "
            "WEIGHTS/cifar10_resnet56.safetensors",
            "method": METHOD,
            "effort": EFFORT,
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
            "torch": torch.__version__,
            "rows": rows,
        }
        (arguments.output / "strided_latency.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
