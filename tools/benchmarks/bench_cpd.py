"""Time the batched CPD against a loop of tensorly's parafac: 3x3 convolutions of ResNet-50, and trained weights.

    python tools/benchmarks/bench_cpd.py --weights cifar10_resnet56.safetensors

Both sides run in one process, taking turns. The loop is timed on a sample of filters of every layer width, a fresh
sample each turn, and extrapolated to all filters; the errors of both are compared on the same sampled filters.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorly
import torch
from comparison_methods import decompose_parafac
from torch import Tensor, nn

from norton_plugin.cpd import decompose_filters, decompose_layers


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time batched CPD against a tensorly loop.")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=300, help="of tensorly's parafac")
    parser.add_argument("--sample", type=int, default=4, help="filters per layer width and turn given to the loop")
    parser.add_argument("--repeats", type=int, default=5, help="turns; the medians are reported")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path, help="safetensors file with trained 3x3 convolutions, named *.conv*")
    parser.add_argument("--out", type=Path, default=Path("docs/results/cpd_speed.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/results/cpd_speed.png"))
    return parser.parse_args()


def resnet50_weights() -> list[Tensor]:
    """Return all 3x3 convolution weights of torchvision's ResNet-50, randomly initialised."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    modules = resnet50(weights=None).modules()
    return [m.weight.detach() for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def trained_weights(path: Path) -> list[Tensor]:
    """Return all 3x3 convolution weights of a safetensors file, but for the stem."""
    from safetensors.torch import load_file

    items = sorted(load_file(path).items())
    return [w for name, w in items if ".conv" in name and w.dim() == 4 and w.shape[2:] == (3, 3)]


def clock(run: Callable[[], Any], device: str) -> tuple[float, float, Any]:
    """Wall-clock seconds of one call, processor seconds of this process, and the result of the call."""
    if device != "cpu":
        torch.cuda.synchronize()
    begin, busy = time.perf_counter(), time.process_time()
    result = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - busy, result


@dataclass
class Turns:
    """What was measured, a value per turn.

    Attributes:
        batched: (wall-clock, processor) seconds of the batched decomposition of all filters.
        looped: The same of the loop, extrapolated from its sample.
        ours: NMSE of the sampled filters, batched.
        theirs: NMSE of the sampled filters by the loop.
    """

    batched: list[tuple[float, float]] = field(default_factory=list)
    looped: list[tuple[float, float]] = field(default_factory=list)
    ours: list[Tensor] = field(default_factory=list)
    theirs: list[Tensor] = field(default_factory=list)

    def ratios(self, which: int) -> list[float]:
        """Return how many times longer the loop took, per turn, by the clock (0) or in processor seconds (1)."""
        return [slow[which] / fast[which] for slow, fast in zip(self.looped, self.batched, strict=True)]


def take_turn(turns: Turns, weights: list[Tensor], args: argparse.Namespace, generator: torch.Generator) -> list[Any]:
    """Decompose everything at once, then a sample of every layer width one by one; return the batched results."""
    batch = [weight.to(args.device) for weight in weights]
    *spent, results = clock(lambda: decompose_layers(batch, args.rank), args.device)
    turns.batched.append((spent[0], spent[1]))
    total = total_cpu = 0.0
    for width in dict.fromkeys(weight.shape[1] for weight in weights):
        filters = torch.cat([weight for weight in weights if weight.shape[1] == width])
        errors = torch.cat([r.nmse for w, r in zip(weights, results, strict=True) if w.shape[1] == width])
        chosen = torch.randperm(len(filters), generator=generator)[: args.sample]
        sample = filters[chosen]
        seconds, busy, found = clock(lambda s=sample: decompose_parafac(s, args.rank, sweeps=args.iterations), "cpu")
        total += seconds / len(chosen) * len(filters)
        total_cpu += busy / len(chosen) * len(filters)
        turns.ours.append(errors.cpu()[chosen])
        turns.theirs.append(found.nmse)
    turns.looped.append((total, total_cpu))
    return results


def compare(weights: list[Tensor], args: argparse.Namespace) -> dict[str, Any]:
    """Take turns between the batched decomposition of everything and the loop on a sample."""
    decompose_layers([weights[0].to(args.device)], args.rank)  # warm-up
    generator, turns = torch.Generator().manual_seed(0), Turns()
    for _ in range(args.repeats):
        results = take_turn(turns, weights, args, generator)
        batched, loop = turns.batched[-1][0], turns.looped[-1][0]
        print(f"  batched {batched:.2f} s, loop {loop:.0f} s (extrapolated), ratio {loop / batched:.0f}")
    everything = torch.cat([result.nmse for result in results])
    wall, processor = (
        [statistics.median(each[which] for each in side) for side in (turns.batched, turns.looped)] for which in (0, 1)
    )
    return {
        "layers": len(weights),
        "filters": sum(len(weight) for weight in weights),
        "batched_seconds": wall[0],
        "loop_seconds_extrapolated": wall[1],
        "loop_filters_timed": sum(len(e) for e in turns.theirs),
        "ratio": statistics.median(turns.ratios(0)),
        "ratio_lowest_turn": min(turns.ratios(0)),
        "batched_processor_seconds": processor[0],
        "loop_processor_seconds_extrapolated": processor[1],
        "ratio_of_processor_seconds": statistics.median(turns.ratios(1)),
        "batched_nmse_on_sample": float(torch.cat(turns.ours).mean()),
        "loop_nmse_on_sample": float(torch.cat(turns.theirs).mean()),
        "batched_nmse_all": float(everything.mean()),
        "batched_nmse_worst_filter": float(everything.max()),
        "fallbacks": int(sum(result.fallback.sum() for result in results)),
    }


def scaling(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return seconds against N, C and R around 256 filters of 64 x 3 x 3 at the rank asked for."""
    cases = {
        "N": [(n, 64, args.rank) for n in (32, 64, 128, 256, 512, 1024, 2048)],
        "C": [(256, c, args.rank) for c in (8, 32, 64, 128, 256, 512, 1024)],
        "R": [(256, 64, rank) for rank in range(1, 9)],
    }
    generator = torch.Generator().manual_seed(0)
    curves: dict[str, list[dict[str, float]]] = {}
    for axis, shapes in cases.items():
        curves[axis] = []
        for n, c, rank in shapes:
            weight = torch.randn(n, c, 3, 3, generator=generator).to(args.device)
            runs = [clock(lambda w=weight, r=rank: decompose_filters(w, r), args.device) for _ in range(3)]
            row = {"N": n, "C": c, "R": rank, "seconds": statistics.median(run[0] for run in runs)}
            row["processor_seconds"] = statistics.median(run[1] for run in runs)
            curves[axis].append({**row, "sweeps_of_slowest_filter": runs[0][2].sweeps})
    return curves


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the three curves side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    # Processor time is the steadier of the two where other work shares the machine; it says nothing of a GPU.
    unit = "processor_seconds" if report["machine"]["device"] == "cpu" else "seconds"
    labels = {"N": "filters N", "C": "input channels C", "R": "rank R"}
    for axis, (name, rows) in zip(axes, report["scaling"].items(), strict=True):
        axis.plot([row[name] for row in rows], [row[unit] for row in rows], "o-", color="#1f5fa8")
        fixed = ", ".join(f"{key} = {rows[0][key]}" for key in labels if key != name)
        axis.set(xlabel=labels[name], title=fixed, yscale="log")
        axis.set_xscale("linear" if name == "R" else "log", **({} if name == "R" else {"base": 2}))
        axis.set_xticks([row[name] for row in rows], [str(row[name]) for row in rows])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(unit.replace("_", " "))
    figure.suptitle("Batched filter-wise CPD, 3x3 kernels")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run, print, write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    sources = {"resnet50_random_init": resnet50_weights()}
    if args.weights:
        sources[args.weights.stem] = trained_weights(args.weights)
    report: dict[str, Any] = {
        "command": shlex.join(["python", "tools/benchmarks/bench_cpd.py", *map(_public, sys.argv[1:])]),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average_at_start": os.getloadavg()[0],
            "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "tensorly": tensorly.__version__,
            "python": platform.python_version(),
        },
        "method": f"Rank {args.rank}. The loop is tensorly parafac(init='random', n_iter_max={args.iterations}, "
        f"tol=1e-8) on the CPU, timed on {args.sample} filters per layer width and turn and EXTRAPOLATED to all "
        "filters. Batched: decompose_layers with its defaults (3 starts). Medians of "
        f"{args.repeats} turns, the two sides alternating in one process; the ratio is the median of the turns'. "
        "Where the load average is above the cores, trust the ratio of processor seconds more than wall clock.",
        "comparison": {},
    }
    for name, weights in sources.items():
        print(f"{name}: {len(weights)} layers, rank {args.rank}")
        row = report["comparison"][name] = compare(weights, args)
        print(
            f"  median: {row['ratio']:.0f} times faster ({row['ratio_of_processor_seconds']:.0f} in processor "
            f"seconds); NMSE {row['batched_nmse_on_sample']:.4f} batched, "
            f"{row['loop_nmse_on_sample']:.4f} loop, on the {row['loop_filters_timed']} filters both did"
        )
    report["scaling"] = scaling(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    plot(report, args.plot)
    print(f"wrote {args.out} and {args.plot}")


def _public(argument: str) -> str:
    """Return an argument as it may be printed in a report: files by name, not by place on this machine."""
    return Path(argument).name if argument.startswith("/") or ".." in Path(argument).parts else argument


if __name__ == "__main__":
    main()
