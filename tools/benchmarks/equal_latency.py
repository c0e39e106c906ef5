"""Error against measured latency of every level, Tucker-2 and spatial SVD, in PyTorch and in onnxruntime.

    OMP_NUM_THREADS=1 python tools/benchmarks/equal_latency.py --weights WEIGHTS/cifar10_resnet56.safetensors

Layers of up to 64 channels have trained weights, wider ones random weights with the spectra of trained ones
(``trained_like.py``). Every method is measured at several sizes; what it reaches at a given time lies between two of
them. Written after every shape.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from equal_latency_plot import plot
from layer_chains import dense_conv, forms_of, level_chain, random_chain, rank_within
from layer_errors import EFFORT, errors
from layer_shapes import CLUSTERS, LAYERS, Layer
from onnx_chain import chain_session, run
from quiet_timing import FORMATS, METHOD, fastest, middle, prepare, repeated
from torch import Tensor, nn
from trained_like import trained_layers, trained_like

METHODS = ("filter", "cluster", "layer", "tucker2", "svd_spatial")
CIFAR = (Layer(16, 32), Layer(32, 16), Layer(64, 8))
RANKS = (1, 2, 3, 4)
SHARES = (0.12, 0.18, 0.27, 0.4, 0.6)
FRACTIONS = (0.25, 0.33, 0.5, 0.67)  # of the dense layer's time
RUNTIMES = ("PyTorch", "onnxruntime")
Variants = dict[str, Callable[[], Any]]


def sizes(layer: Layer) -> dict[tuple[str, int], dict[str, nn.Module]]:
    """Return every form of every method at every size; a size is R, components, or the rank."""
    found: dict[tuple[str, int], dict[str, nn.Module]] = {}
    for rank in RANKS:
        if layout := layer.layout("filter", rank):
            found["filter", rank] = {form: level_chain(layer, layout, form) for form in forms_of(layout)}
    for share in SHARES:
        macs = share * layer.shape.dense_macs
        for level in ("cluster", "layer"):
            layout = layer.layout_within(level, macs)
            if layout and layout.rank <= layer.shape.full_rank(layout.clusters):
                chains = {form: level_chain(layer, layout, form) for form in forms_of(layout)}
                found[level, layout.components or 0] = chains
        for method in ("tucker2", "svd_spatial"):
            if size := rank_within(layer, method, macs):
                found[method, size] = {"chain": random_chain(layer, method, size)}
    return found


def variants(forms: dict[str, nn.Module], x: Tensor, runtime: str) -> Variants:
    """Return what runs each form in a runtime, in every memory format where there are any."""
    if runtime == "onnxruntime":
        return {form: partial(run, chain_session(chain, x), x.numpy()) for form, chain in forms.items()}
    return {
        f"{form}, {name}": partial(deepcopy(chain).eval().to(memory_format=memory), x.to(memory_format=memory))
        for name, memory in FORMATS.items()
        for form, chain in forms.items()
    }


def measure(layer: Layer, runtime: str, nmse: dict[tuple[str, int], float], runs: int) -> dict[str, Any]:
    """Return the points of one shape in one runtime, and who is ahead at each share of the dense layer's time."""
    x = torch.randn(1, layer.channels, layer.size, layer.size)
    chains: dict[Any, dict[str, nn.Module]] = {"dense": {"dense": dense_conv(layer)}, **sizes(layer)}
    candidates = {name: variants(forms, x, runtime) for name, forms in chains.items()}
    best = fastest(candidates, rounds=3)
    timed = repeated({name: candidates[name][best[name]] for name in best}, runs=runs, rounds=9)
    dense = middle([1e3 * run_["dense"] for run_ in timed])
    points = [
        {
            "method": name[0],
            "size": name[1],
            "nmse": float(f"{nmse[name]:.4g}"),
            "ms": middle([1e3 * run_[name] for run_ in timed]),
            "share_of_dense_time": middle([run_[name] / run_["dense"] for run_ in timed]),
            "variant": best[name],
        }
        for name in best
        if name != "dense"
    ]
    return {
        "shape": layer.name,
        "weights": "trained" if layer.channels <= 64 else "spectra of trained ones",
        "runtime": runtime,
        "dense_ms": dense,
        "points": points,
        "at_equal_time": [
            {
                "share_of_dense_time": fraction,
                "nmse": {method: reached(points, method, fraction) for method in METHODS},
            }
            for fraction in FRACTIONS
        ],
    }


def reached(points: list[dict[str, Any]], method: str, share: float) -> float | None:
    """Return the lowest NMSE of a method within a share of the dense time; None where its smallest size takes longer.

    Between two sizes the logarithm of the error is taken to fall evenly with time.
    """
    own = sorted((p["share_of_dense_time"], p["nmse"]) for p in points if p["method"] == method)
    front: list[tuple[float, float]] = []
    for time, error in own:
        if not front or error < front[-1][1]:
            front.append((time, error))
    within = [p for p in front if p[0] <= share]
    if not within:
        return None
    beyond = [p for p in front if p[0] > share]
    (t0, e0), (t1, e1) = within[-1], (beyond or within[-1:])[0]
    part = (share - t0) / (t1 - t0) if t1 > t0 else 0.0
    floor = 1e-12
    return float(f"{math.exp((1 - part) * math.log(max(e0, floor)) + part * math.log(max(e1, floor))):.4g}")


def weights_of(width: int, path: Path) -> list[Tensor]:
    """Return four trained weights of the width, or one with their spectra."""
    if width <= 64:
        layers = trained_layers(path, width)
        return layers[:: max(1, len(layers) // 4)][:4]
    return [trained_like(trained_layers(path, 64), width)]


def measured_errors(path: Path) -> dict[tuple[int, str, int], float]:
    """Return the errors of a file written before, by width, method and size."""
    rows = json.loads(path.read_text())["rows"]
    return {(int(row["shape"].split("x")[0]), p["method"], p["size"]): p["nmse"] for row in rows for p in row["points"]}


def model_check(path: Path) -> dict[str, dict[str, float]]:
    """Return the errors on trained weights and on weights with their spectra, at 64 channels and equal MACs."""
    layer = Layer(64, 56)
    macs = layer.shape.macs(layer.layout("filter", 2))  # type: ignore[arg-type]
    chosen = {"filter": 2, "layer": layer.layout_within("layer", macs).components}  # type: ignore[union-attr]
    chosen |= {method: rank_within(layer, method, macs) for method in ("tucker2", "svd_spatial")}
    kinds = {"trained": trained_layers(path, 64), "spectra": [trained_like(trained_layers(path, 64), 64)]}
    return {
        kind: {m: round(errors(w, m, s or 0, clusters=CLUSTERS), 4) for m, s in chosen.items()}
        for kind, w in kinds.items()
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="cifar10_resnet56.safetensors")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs of 9 calls each")
    parser.add_argument("--keep-errors", action="store_true", help="take errors from the file that is there")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder for equal_latency.json")
    arguments = parser.parse_args()
    prepare()
    torch.manual_seed(0)
    known = measured_errors(arguments.output / "equal_latency.json") if arguments.keep_errors else {}
    rows: list[dict[str, Any]] = []
    check = model_check(arguments.weights)
    print(check, flush=True)
    for layer in sorted((*LAYERS, *CIFAR), key=lambda layer: layer.channels):
        weights = weights_of(layer.channels, arguments.weights)
        for method, size in sizes(layer):
            if (layer.channels, method, size) not in known:
                known[layer.channels, method, size] = errors(weights, method, size, clusters=CLUSTERS)
        nmse = {(method, size): error for (width, method, size), error in known.items() if width == layer.channels}
        for runtime in RUNTIMES:
            rows.append(measure(layer, runtime, nmse, arguments.runs))
            print(layer.name, runtime, *(list(e["nmse"].values()) for e in rows[-1]["at_equal_time"]), flush=True)
        content = {
            "command": "OMP_NUM_THREADS=1 python tools/benchmarks/equal_latency.py --weights "
            "WEIGHTS/cifar10_resnet56.safetensors",
            "method": METHOD,
            "clusters": CLUSTERS,
            "effort": EFFORT,
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
            "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
            "weights_check": check,
            "rows": rows,
        }
        (arguments.output / "equal_latency.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(rows, arguments.output / "equal_latency.png")


if __name__ == "__main__":
    main()
