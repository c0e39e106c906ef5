"""Time shared components of whole layers against tensorly's parafac, and compare what keeps components bounded.

    python tools/benchmarks/bench_coupled.py --weights cifar10_resnet20.safetensors

Speed: the sixteen 3x3 convolutions of ResNet-50, randomly initialised, one cluster each, with as many components as
cost the MACs of filter-wise CPD at rank 2. tensorly runs on the first layer of each width only: whole up to `--whole`
filters, beyond that for a few iterations, which are EXTRAPOLATED. Bounds: layers of trained weights, plain ALS against
the ridge and against error-preserving correction (Phan, Tichavsky, Cichocki, 2019).
"""

import argparse
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import tensorly
import torch
from bench_cpd import clock, resnet50_weights, trained_weights
from tensorly.decomposition import parafac
from torch import Tensor

from norton_plugin.cpd import CoupledFactors, decompose_coupled
from norton_plugin.cpd.coupled_sweep import Columns, solve_mix, sweep, unit_columns

PLAIN = 1e-12  # a ridge this small is below what double precision sees: plain ALS


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time and compare components shared by whole layers.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--iterations", type=int, default=100, help="of tensorly's parafac, its own default")
    parser.add_argument("--whole", type=int, default=128, help="most filters for which all iterations are run")
    parser.add_argument("--weights", type=Path, help="safetensors file with trained 3x3 convolutions, named *.conv*")
    parser.add_argument("--out", type=Path, default=Path("docs/results/coupled_speed.json"))
    return parser.parse_args()


def components_of(weight: Tensor, rank: int) -> int:
    """Components that cost, at stride 1, the MACs of filter-wise CPD: ``R N (C+Kh+Kw) = M (C+Kh+Kw + N)``."""
    filters, channels, height, width = weight.shape
    taps = channels + height + width
    return rank * filters * taps // (taps + filters)


def by_tensorly(weight: Tensor, rank: int, iterations: int, seed: int) -> tuple[float, float, float]:
    """Wall-clock seconds, processor seconds and error of parafac from one random start."""
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        wall, busy, cp = clock(
            lambda: parafac(weight, rank, n_iter_max=iterations, init="random", tol=1e-8, random_state=seed), "cpu"
        )
        error = float((tensorly.cp_to_tensor(cp) - weight).square().sum() / weight.square().sum())
    return wall, busy, error


def compare_width(weights: list[Tensor], args: argparse.Namespace) -> dict[str, Any]:
    """Decompose all layers of one width, and the first of them by tensorly."""
    weight = weights[0]
    rank = components_of(weight, 2)
    wall, busy, results = clock(lambda: decompose_coupled(weights, rank), "cpu")
    row: dict[str, Any] = {
        "width": len(weight),
        "layers": len(weights),
        "components": rank,
        "seconds": wall,
        "processor_seconds": busy,
        "nmse_first_layer": results[0].layer_nmse,
        "nmse_worst_layer": max(result.layer_nmse for result in results),
        "largest_component": max(result.largest_component for result in results),
        "fallbacks": int(sum(result.fallback.sum() for result in results)),
    }
    if len(weight) <= args.whole:
        runs = [by_tensorly(weight, rank, args.iterations, seed) for seed in range(3)]
        one_wall, one_busy = (sum(run[which] for run in runs) / 3 for which in (0, 1))
        row["tensorly_nmse_best_of_three"] = min(run[2] for run in runs)
        row["tensorly_extrapolated_from_iterations"] = None
    else:
        short, long = (by_tensorly(weight, rank, count, 0) for count in (1, 3))
        one_wall, one_busy = ((long[which] - short[which]) / 2 * args.iterations for which in (0, 1))
        row["tensorly_nmse_best_of_three"] = None
        row["tensorly_extrapolated_from_iterations"] = 2
    row["tensorly_seconds_one_start"] = one_wall * len(weights)
    row["tensorly_processor_seconds_one_start"] = one_busy * len(weights)
    return row


def corrected(weight: Tensor, plain: CoupledFactors, error: float, *, sweeps: int = 300) -> CoupledFactors:
    """Error-preserving correction: lower the norms of the components while the error stays at most 0.1 % above.

    ALS on the Lagrangian, its multiplier raised while the error allows it and lowered otherwise.
    """
    norm = torch.linalg.vector_norm(weight.double())
    tensor = (weight.double().flatten(2).mT / norm).unsqueeze(0).contiguous()
    columns = Columns(*(unit_columns(factor.mT) for factor in plain[:3]))
    best, ridge = plain, torch.full((1,), 1e-8, dtype=torch.float64)
    for _ in range(sweeps):
        columns, _ = sweep(tensor, columns, ridge=ridge)
        mix = solve_mix(tensor, columns, ridge=ridge)[0] * norm
        found = CoupledFactors(*(column.mT for column in columns), mix[0], plain.cluster).balanced()
        fits = error_of(found, weight) <= 1.001 * error
        best = found if fits else best
        ridge = ridge * (1.2 if fits else 0.7)
    return best


def error_of(factors: CoupledFactors, weight: Tensor) -> float:
    """NMSE of the whole layer."""
    return float((factors.reconstruct() - weight).square().sum() / weight.double().square().sum())


def bounds(weight: Tensor, rank: int) -> list[dict[str, Any]]:
    """Compare what bounds the components of one layer."""
    dense = weight.double()
    found = {}
    for name, ridge in (("plain ALS", PLAIN), ("ridge 3e-5", 3e-5), ("ridge 3e-4", 3e-4), ("ridge 3e-3", 3e-3)):
        result = decompose_coupled([dense], rank, ridge=ridge, sweeps=1000, tolerance=1e-5)[0]
        found[name] = (result.factors, result.sweeps)
    plain = found["plain ALS"][0]
    found["error-preserving correction of plain ALS"] = (corrected(dense, plain, error_of(plain, dense)), 300)
    rows = []
    for name, (factors, sweeps) in found.items():
        value, exponent = factors.component_norms()
        rounded = factors.to(dtype=torch.bfloat16).to(dtype=torch.float64)
        rows.append(
            {
                "method": name,
                "nmse": error_of(factors, dense),
                "nmse_rounded_to_bfloat16": error_of(rounded, dense),
                "largest_component": float((value * 2.0**exponent).max() / dense.norm()),
                "sweeps": sweeps,
            }
        )
    return rows


def main() -> None:
    """Run, print, write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "tools/benchmarks/bench_coupled.py", *map(_public, sys.argv[1:])]),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average_at_start": os.getloadavg()[0],
            "torch": torch.__version__,
            "tensorly": tensorly.__version__,
            "python": platform.python_version(),
        },
        "iterations": args.iterations,
        "layers": [],
        "bounds": [],
    }
    weights = resnet50_weights()
    decompose_coupled([weights[0][:16, :16]], 8)  # warm-up
    for width in sorted({len(weight) for weight in weights}):
        row = compare_width([weight for weight in weights if len(weight) == width], args)
        report["layers"].append(row)
        print(json.dumps(row), flush=True)
    if args.weights:
        trained = trained_weights(args.weights)
        for weight in (trained[1], trained[len(trained) // 2], trained[-1]):
            for rank in (1, 2, 6):
                count = components_of(weight, rank)
                row = {"shape": list(weight.shape), "components": count, "rows": bounds(weight, count)}
                report["bounds"].append(row)
                print(json.dumps(row), flush=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.out}")


def _public(argument: str) -> str:
    """Return an argument as it may be printed in a report: files by name, not by place on this machine."""
    return Path(argument).name if argument.startswith("/") or ".." in Path(argument).parts else argument


if __name__ == "__main__":
    main()
