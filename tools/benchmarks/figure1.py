"""Compare filter-wise CPD with layer-wise and reshaped decompositions at equal parameters, on trained weights.

    python tools/benchmarks/figure1.py --weights cifar10_resnet56.safetensors

The paper's Figure 1 as a measurement. The budget of a layer is what its filter-wise CPD of rank R stores; every other
method gets the largest rank that stores no more. Reported: the NMSE of a layer, averaged over layers.
"""

import argparse
import json
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from comparison_methods import LAYER_METHODS, approximate_layer, filter_parameters, rank_for_parameters
from torch import Tensor

LABELS = {
    "als": ("filter-wise CPD", "#1f5fa8", "o"),
    "layer_cp": ("layer-wise CPD", "#c8442c", "s"),
    "tucker2": ("layer-wise Tucker-2", "#d99a1c", "^"),
    "svd_channels": ("SVD of N x (C Kh Kw)", "#4f8f3a", "v"),
    "svd_spatial": ("SVD of (C Kh) x (N Kw)", "#7a5aa6", "D"),
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="NMSE of five decompositions at equal parameters.")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file with 3x3 convolutions, *.conv*")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="filter-wise ranks: the budgets")
    parser.add_argument("--every", type=int, default=1, help="use every n-th layer of each stage")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("docs/results/figure1.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/results/figure1.png"))
    return parser.parse_args()


def load_layers(path: Path, every: int) -> dict[str, Tensor]:
    """3x3 convolution weights by name, every n-th of each stage."""
    from safetensors.torch import load_file

    state = load_file(path)
    names = [n for n, w in state.items() if ".conv" in n and w.dim() == 4 and w.shape[2:] == (3, 3)]
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")])
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(name.split(".")[0], []).append(name)
    return {name: state[name] for members in stages.values() for name in members[::every]}


def measure(layers: dict[str, Tensor], rank: int) -> list[dict[str, Any]]:
    """Return one row per layer and method at the budget of filter-wise rank ``rank``."""
    rows = []
    for name, weight in layers.items():
        shape = tuple(weight.shape)
        budget = filter_parameters(shape, rank)
        for method in LABELS:
            own = rank_for_parameters(shape, budget, method=method) if method in LAYER_METHODS else rank
            found = approximate_layer(weight, own, method=method) if own else None
            rows.append(
                {
                    "layer": name,
                    "method": method,
                    "budget_rank": rank,
                    "rank": own,
                    "parameters_share": (found.parameters if found else 0) / weight.numel(),
                    "nmse": found.nmse if found else 1.0,
                }
            )
    return rows


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Averages over layers, per budget and method, with how often filter-wise CPD was the better one."""
    summary = []
    for rank in sorted({row["budget_rank"] for row in rows}):
        best = {r["layer"]: r["nmse"] for r in rows if r["budget_rank"] == rank and r["method"] == "als"}
        for method in LABELS:
            chosen = [row for row in rows if row["budget_rank"] == rank and row["method"] == method]
            summary.append(
                {
                    "budget_rank": rank,
                    "method": method,
                    "mean_nmse": statistics.fmean(row["nmse"] for row in chosen),
                    "mean_parameters_share": statistics.fmean(row["parameters_share"] for row in chosen),
                    "layers_where_filter_wise_is_better": sum(best[row["layer"]] < row["nmse"] for row in chosen),
                }
            )
    return summary


def plot(summary: list[dict[str, Any]], layers: int, path: Path) -> None:
    """NMSE against the share of parameters kept, one line per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for method, (label, colour, marker) in LABELS.items():
        rows = [row for row in summary if row["method"] == method]
        shares = [100 * row["mean_parameters_share"] for row in rows]
        axis.plot(shares, [row["mean_nmse"] for row in rows], marker=marker, color=colour, label=label)
    axis.set(xlabel="parameters kept, % of the dense layer", ylabel="NMSE of the weight, mean over layers")
    axis.set(title=f"Equal parameters, {layers} trained 3x3 layers", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, print, write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    layers = load_layers(args.weights, args.every)
    rows = []
    for rank in args.ranks:
        begin = time.perf_counter()
        rows += measure(layers, rank)
        means = {row["method"]: row["mean_nmse"] for row in summarise(rows) if row["budget_rank"] == rank}
        found = "  ".join(f"{method} {value:.4f}" for method, value in means.items())
        print(f"budget of R={rank}: {found}  ({time.perf_counter() - begin:.0f} s)", flush=True)
    summary = summarise(rows)
    command = [
        "python",
        "tools/benchmarks/figure1.py",
        "--weights",
        args.weights.name,
        "--ranks",
        *map(str, args.ranks),
    ]
    report = {
        "command": shlex.join([*command, "--every", str(args.every)]),
        "weights": args.weights.name,
        "layers": len(layers),
        "torch": torch.__version__,
        "method": "Budget of a layer: R N (C + Kh + Kw) numbers, the filter-wise CPD of rank R. Every other method "
        "gets the largest rank that stores no more. NMSE of the whole layer, averaged over layers. Layer-wise CPD "
        "and Tucker by tensorly (100 iterations), Tucker with the same share of both channel modes.",
        "summary": summary,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    plot(summary, len(layers), args.plot)
    print(f"wrote {args.out} and {args.plot}")


if __name__ == "__main__":
    main()
