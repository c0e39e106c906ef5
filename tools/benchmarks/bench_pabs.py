"""Time and memory of the PABS distance matrix and removal order, against a Python loop over pairs of filters.

The loops are timed on a random sample of pairs and extrapolated to all of them; the removal order that follows them
(a full scan of the remaining matrix at every removal, in NumPy) is run whole. All candidates take turns, round by
round, so that other work on the machine hits them alike. Ratios compare medians of processor time, which on one
thread is the wall time of an idle machine; wall times are recorded beside it.

    OMP_NUM_THREADS=1 python tools/benchmarks/bench_pabs.py --output docs/results
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import scipy
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from norton_plugin.pabs import largest_angle_matrix, pabs_distance, removal_order

MEMORY_LIMIT = 4 * 2**30
TARGET_RATIO = 100
# A call, and how many times its work the whole would be.
Candidate = tuple[Callable[[], object], float]


def random_factors(filters: int, channels: int, rank: int) -> list[Tensor]:
    """Head, vertical and horizontal factors of a 3x3 layer with random entries, float32 as a model holds them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(filters, rank, dim, generator=generator) for dim in (channels, 3, 3)]


def angle_by_qr(a: np.ndarray, b: np.ndarray) -> float:
    """Largest principal angle by QR and the cosine form alone: the shortest loop body (half precision when small)."""
    qa, qb = np.linalg.qr(a.T)[0], np.linalg.qr(b.T)[0]
    smallest = np.linalg.svd(qa.T @ qb, compute_uv=False)[-1]
    return float(np.arccos(min(1.0, smallest)))


def angle_by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest principal angle with small angles in full precision, as ours are."""
    return float(subspace_angles(a.T, b.T).max())


def order_by_scans(distance: np.ndarray) -> list[int]:
    """Order filters by the removal rule, with a full scan of the remaining matrix at every step."""
    table = distance.copy()
    np.fill_diagonal(table, np.inf)
    sums, order = distance.sum(1), []
    for _ in range(len(table) - 1):
        i, j = divmod(int(table.argmin()), len(table))
        removed = i if sums[i] < sums[j] else j
        sums -= distance[removed]
        table[removed], table[:, removed] = np.inf, np.inf
        order.append(removed)
    return order


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Processor time and wall time of one call."""
    processor_start, wall_start = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor_start, time.perf_counter() - wall_start


def median_seconds(work: Callable[[], object], rounds: int) -> float:
    """Median processor time of a call."""
    return statistics.median(seconds(work)[0] for _ in range(rounds))


def compare(filters: int, channels: int, rank: int, *, rounds: int, sample: int) -> dict[str, object]:
    """Medians of ours and of the loops for one layer."""
    factors = random_factors(filters, channels, rank)
    everything = list(combinations(range(filters), 2))
    chosen = [everything[k] for k in np.random.default_rng(0).choice(len(everything), sample, replace=False)]
    matrix = pabs_distance(factors).matrix
    medians, walls = in_turns(candidates(factors, chosen, pairs=len(everything)), rounds)
    head = factors[0].double().numpy()
    worst = max(abs(angle_by_scipy(head[i], head[j]) - float(matrix[i, j])) for i, j in chosen[:100])
    return {
        "filters": filters,
        "channels": channels,
        "rank": rank,
        "kernel": [3, 3],
        "pairs": len(everything),
        "pairs_sampled_for_the_loops": sample,
        "rounds": rounds,
        "median_processor_seconds": medians,
        "median_wall_seconds": walls,
        "ours_total_processor_seconds": medians["ours: matrix"] + medians["ours: order"],
        "ratios": ratios_to_loops(medians),
        "wall_ratios": ratios_to_loops(walls),
        "largest_difference_from_scipy_radians": worst,
        "same_order_as_the_scans": order_by_scans(matrix.numpy()) == removal_order(matrix).tolist()[:-1],
    }


def candidates(factors: list[Tensor], chosen: Sequence[tuple[int, int]], *, pairs: int) -> dict[str, Candidate]:
    """Return what is timed: ours on all pairs, and loops over the chosen ones.

    Args:
        factors: Of one layer.
        chosen: The pairs of filters that the loops see.
        pairs: How many there are in all.

    Returns:
        By name: a call, and how many times the work of the call the whole would be.
    """
    arrays = [factor.double().numpy() for factor in factors]
    bases = [np.linalg.qr(matrix.T)[0] for matrix in arrays[0]]
    matrix, share = pabs_distance(factors).matrix, pairs / len(chosen)

    def loop(angle: Callable[[np.ndarray, np.ndarray], float], used: list[np.ndarray]) -> Callable[[], float]:
        return lambda: sum(angle(each[i], each[j]) for i, j in chosen for each in used)

    def cosines() -> list[float]:
        return [np.arccos(min(1, np.linalg.svd(bases[i].T @ bases[j], compute_uv=False)[-1])) for i, j in chosen]

    return {
        "ours: matrix": (lambda: pabs_distance(factors), 1),
        "ours: order": (lambda: removal_order(matrix), 1),
        "loop: QR and cosine form, three factors": (loop(angle_by_qr, arrays), share),
        "loop: scipy.linalg.subspace_angles, three factors": (loop(angle_by_scipy, arrays), share),
        "loop: QR and cosine form, head only": (loop(angle_by_qr, arrays[:1]), share),
        "loop: scipy.linalg.subspace_angles, head only": (loop(angle_by_scipy, arrays[:1]), share),
        "loop: bases made once, cosine form, head only": (cosines, share),
        "loop: order": (lambda: order_by_scans(matrix.numpy()), 1),
    }


def in_turns(timed: dict[str, Candidate], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return median processor time and wall time of each candidate, all of them called in turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, (work, factor) in timed.items():
            spent, wall = seconds(work)
            times[name].append((spent * factor, wall * factor))
    medians = {name: statistics.median(spent for spent, _ in values) for name, values in times.items()}
    return medians, {name: statistics.median(wall for _, wall in values) for name, values in times.items()}


def ratios_to_loops(medians: dict[str, float]) -> dict[str, float]:
    """Return how many times longer each loop takes, the order included on both sides."""
    ours = medians["ours: matrix"] + medians["ours: order"]
    return {
        f"{name}, and order": (value + medians["loop: order"]) / ours
        for name, value in medians.items()
        if name.startswith("loop") and name != "loop: order"
    }


def peak_memory(filters: int, channels: int, rank: int, *, threads: int) -> dict[str, object]:
    """Peak resident memory of matrix and order in a fresh process, and of that process before the work."""
    command = [sys.executable, __file__, "--memory-probe", *(str(n) for n in (filters, channels, rank))]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    return {"filters": filters, "channels": channels, "rank": rank, "limit_bytes": MEMORY_LIMIT, **measured}


def probe(filters: int, channels: int, rank: int) -> dict[str, float]:
    """Measure in the fresh process of `peak_memory`."""

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux

    factors = random_factors(filters, channels, rank)
    before = peak()
    start = time.perf_counter()
    matrix = pabs_distance(factors).matrix
    middle = time.perf_counter()
    removal_order(matrix)
    end = time.perf_counter()
    return {
        "peak_bytes": peak(),
        "before_bytes": before,
        "matrix_seconds": middle - start,
        "order_seconds": end - middle,
    }


def scaling(rounds: int) -> dict[str, list[dict[str, float]]]:
    """Median processor time of the head's angle matrix and of the order against N, C and R (else 512, 512, 4)."""
    sweeps = {
        "filters": [(n, 512, 4) for n in (64, 128, 256, 512, 1024, 2048)],
        "channels": [(512, c, 4) for c in (16, 64, 128, 256, 512, 1024, 2048)],
        "rank": [(512, 512, r) for r in (1, 2, 3, 4, 5, 6, 7, 8)],
    }
    rows: dict[str, list[dict[str, float]]] = {}
    for axis, shapes in sweeps.items():
        rows[axis] = []
        for filters, channels, rank in shapes:
            head = random_factors(filters, channels, rank)[0]
            matrix = largest_angle_matrix(head)
            repeats = rounds if filters <= 1024 else 3
            angle = median_seconds(partial(largest_angle_matrix, head), repeats)
            order = median_seconds(partial(removal_order, matrix), repeats)
            row = {"filters": filters, "channels": channels, "rank": rank}
            rows[axis].append({**row, "matrix_seconds": angle, "order_seconds": order})
            print(f"{axis}: N={filters} C={channels} R={rank}: matrix {angle:.3f} s, order {order:.3f} s", flush=True)
    return rows


def plot(rows: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw one panel per size, logarithmic axes."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    titles = {"filters": "filters N  (C=512, R=4)", "channels": "channels C  (N=512, R=4)"}
    titles["rank"] = "rank R  (N=512, C=512)"
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        sizes = [row[name] for row in rows[name]]
        axis.loglog(sizes, [row["matrix_seconds"] for row in rows[name]], "o-", label="angle matrix")
        axis.loglog(sizes, [row["order_seconds"] for row in rows[name]], "s--", label="removal order")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("processor seconds (median)")
    axes[0].legend()
    figure.suptitle(f"Cost of PABS, head factor, float64, CPU threads: {torch.get_num_threads()}")
    figure.savefig(path, dpi=130)


def processor() -> str:
    """Name of the processor as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder of pabs_speed.json and .png")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; start with OMP_NUM_THREADS for NumPy")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sample", type=int, default=300, help="pairs the loops are timed on")
    parser.add_argument("--memory-probe", type=int, nargs=3, metavar=("N", "C", "R"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the comparison, the memory probe and the sweep; print and write them."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_probe:
        print(json.dumps(probe(*args.memory_probe)))
        return
    speed = compare(512, 512, 4, rounds=args.rounds, sample=args.sample)
    total = speed["ours_total_processor_seconds"]
    print(f"512 filters of 512x3x3, rank 4: matrix and order in {total:.3f} s of processor time")
    print(f"Loops extrapolated from {args.sample} of {speed['pairs']} pairs; target {TARGET_RATIO}x:")
    for name, ratio in speed["ratios"].items():  # type: ignore[attr-defined]
        print(f"  {ratio:7.1f}x  {name}")
    memory = peak_memory(2048, 512, 4, threads=args.threads)
    print(
        f"2048 filters: peak {memory['peak_bytes'] / 2**30:.2f} GiB, of which {memory['before_bytes'] / 2**30:.2f} "  # type: ignore[operator]
        f"before the work; matrix {memory['matrix_seconds']:.2f} s, order {memory['order_seconds']:.2f} s"
    )
    rows = scaling(args.rounds)
    args.output.mkdir(parents=True, exist_ok=True)
    result = {
        "command": f"OMP_NUM_THREADS={args.threads} python tools/benchmarks/bench_pabs.py "
        f"--threads {args.threads} --rounds {args.rounds} --sample {args.sample}",
        "machine": {
            "processor": processor(),
            "threads": args.threads,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "note": "loop times are extrapolated from the sampled pairs; all candidates interleaved; ratios "
        "compare medians of processor time, one process, the threads given",
        "target_ratio": TARGET_RATIO,
        "speed": speed,
        "memory": memory,
        "scaling": rows,
    }
    (args.output / "pabs_speed.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(rows, args.output / "pabs_speed.png")


if __name__ == "__main__":
    main()
