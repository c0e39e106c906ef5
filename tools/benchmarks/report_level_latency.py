"""The sections on coupling levels: their latency, and who has the lowest error at equal latency."""

from __future__ import annotations

from collections import Counter
from typing import Any

from report_table import Facts, table

NAMES = {
    "filter": "filter",
    "cluster": "cluster",
    "layer": "layer",
    "tucker2": "Tucker-2",
    "svd_spatial": "spatial SVD",
}
LEVELS = ("filter", "cluster", "layer")
_GOAL, _SLOWER = 1.3, 0.95


def level_latency(facts: Facts) -> str:
    """Latency of the levels at equal MACs."""
    rows = []
    for row in facts["rows"]:
        low, high = row["layer_over_filter_range"]
        speedups = [f"{row['levels'][level]['speedup']:.2f}" for level in LEVELS]
        rows.append(
            [
                row["shape"],
                row["batch"],
                row["rank"],
                row["levels"]["layer"]["components"],
                f"{100 * row['levels']['filter']['macs_share']:.0f}",
                f"{row['dense_ms']:.2f}",
                *speedups,
                f"{row['layer_over_filter']:.2f} ({low:.2f}-{high:.2f})",
            ]
        )
    header = [
        "layer",
        "batch",
        "R",
        "M, layer level",
        "MACs % at R",
        "dense, ms",
        "filter",
        f"cluster ({facts['clusters']})",
    ]
    return (
        f"{facts['method']} PyTorch {facts['torch']}, fp32, {facts['runs']} runs on a shared machine. Times are "
        "speed-ups over the dense convolution. M is what the recipe makes of R: as many components as cost no more "
        "MACs, rounded down to a multiple of 16 where that leaves out at most 7 %.\n\n"
        + table([*header, "layer", "layer over filter (range of the runs)"], rows)
        + f"\n\n{_levels_verdict(facts['rows'])}"
    )


def _levels_verdict(rows: list[dict[str, Any]]) -> str:
    """Say where the layer level is as fast as it should be, and where it is not."""

    def named(chosen: list[dict[str, Any]]) -> str:
        each = [f"{r['shape']} batch {r['batch']} R={r['rank']} ({r['layer_over_filter']:.2f})" for r in chosen]
        return ", ".join(each) if each else "none"

    slower = [row for row in rows if row["layer_over_filter"] < _SLOWER]
    higher = [row for row in rows if row["rank"] > 1]
    missed = [row for row in higher if row["layer_over_filter"] < _GOAL]
    ratios = sorted(row["layer_over_filter"] for row in higher)
    return (
        f"Layer level more than 5 % slower than filter level: {named(slower)}. From R = 2 on it is "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} times as fast (median {ratios[len(ratios) // 2]:.2f}); below "
        f"{_GOAL}: {named(missed)}."
    )


def equal_latency(facts: Facts) -> str:
    """Error at equal latency."""
    rows, firsts = [], Counter[tuple[str, str]]()
    for entry in facts["rows"]:
        for point in entry["at_equal_time"]:
            best = _best(point["nmse"])
            if best:
                firsts[entry["runtime"], best] += 1
            cells = [
                "-" if error is None else (f"**{error:.3f}**" if method == best else f"{error:.3f}")
                for method, error in point["nmse"].items()
            ]
            time = f"{100 * point['share_of_dense_time']:.0f} % of {entry['dense_ms']:.2f}"
            rows.append([entry["shape"], entry["runtime"], time, *cells])
    trained, made = facts["weights_check"]["trained"], facts["weights_check"]["spectra"]
    check = ", ".join(f"{NAMES[m]} {trained[m]:.3f} / {made[m]:.3f}" for m in trained)
    return (
        f"{facts['method']} Batch 1, fp32, PyTorch {facts['versions']['torch']}, onnxruntime "
        f"{facts['versions']['onnxruntime']}. Up to 64 channels the weights are trained (four layers of ResNet-56, "
        "their errors averaged), above they are random with the spectra of the trained ones stretched; at 64 channels "
        f"and the MACs of R = 2 the two kinds give, NMSE trained / random: {check}. The CPDs had one start and at most "
        f"{facts['effort']['sweeps']} sweeps. The table gives the NMSE that each method reaches within a share of the "
        "time of the dense layer in the same runtime, between two measured sizes by interpolation; - where its "
        "smallest size takes longer. Sizes run from 12 to 60 % of the dense MACs, at the filter level from R = 1 to 4: "
        "an error that no longer falls with time is that of the largest size.\n\n"
        + table(["layer", "runtime", "time, ms", *NAMES.values()], rows)
        + f"\n\nThe lowest error, shape by shape:\n\n{_firsts(facts['rows'])}"
        + f"\n\n{_equal_verdict(facts['rows'], firsts)}\n\n![error against time](equal_latency.png)"
    )


def _best(errors: dict[str, float | None]) -> str | None:
    """Return the method of the lowest error, None where none is fast enough."""
    known = {method: error for method, error in errors.items() if error is not None}
    return min(known, key=lambda method: known[method]) if known else None


def _firsts(rows: list[dict[str, Any]]) -> str:
    """Return who is ahead on each shape, by share of the dense layer's time."""
    lines = []
    for entry in rows:
        ahead = [_best(point["nmse"]) for point in entry["at_equal_time"]]
        lines.append([entry["shape"], entry["runtime"], *(NAMES[best] if best else "-" for best in ahead)])
    shares = [f"{100 * point['share_of_dense_time']:.0f} %" for point in rows[0]["at_equal_time"]]
    return table(["layer", "runtime", *shares], lines)


def _equal_verdict(rows: list[dict[str, Any]], firsts: Counter[tuple[str, str]]) -> str:
    """Say who is ahead, how often, and by how much the two methods that are no CPD are where they are."""
    parts = []
    for runtime in dict.fromkeys(entry["runtime"] for entry in rows):
        counts = ", ".join(f"{NAMES[m]} {firsts[runtime, m]}" for m in NAMES if firsts[runtime, m])
        parts.append(
            f"Lowest error in {runtime}, of {sum(n for (r, _), n in firsts.items() if r == runtime)}: {counts}."
        )
        parts.append(_ahead([entry for entry in rows if entry["runtime"] == runtime]))
    return " ".join(parts)


def _ahead(entries: list[dict[str, Any]]) -> str:
    won: dict[str, list[float]] = {}
    for entry in entries:
        for point in entry["at_equal_time"]:
            errors = point["nmse"]
            ours = [errors[level] for level in LEVELS if errors[level] is not None]
            others = [errors[method] for method in ("tucker2", "svd_spatial") if errors[method] is not None]
            if others and (not ours or min(others) < min(ours)):
                won.setdefault(entry["shape"], []).append(min(others) / min(ours) if ours else 0.0)
    if not won:
        return "Neither Tucker-2 nor spatial SVD is ahead of the levels anywhere."
    each = ", ".join(
        f"{shape} ({', '.join(f'{ratio:.2f}' if ratio else 'alone' for ratio in ratios)})"
        for shape, ratios in won.items()
    )
    return (
        f"There, Tucker-2 or spatial SVD is ahead of every level on {len(won)} of {len(entries)} shapes (the quotient "
        f"of their error and that of the best level, by rising time; `alone` where no level is that fast): {each}."
    )


def model_latency(facts: Facts) -> str:
    """Latency of whole models at equal MACs."""
    rows = []
    for entry in facts["rows"]:
        for method, speedups in entry["speedup"].items():
            name = NAMES[method] + (" level" if method in LEVELS else "")
            where = [f"{entry['model']}, {entry['size']}", entry["runtime"], f"{entry['dense_ms']:.0f}"]
            rows.append([*where, name, *(f"{value:.2f}" for value in speedups.values())])
    ranks = list(facts["rows"][0]["speedup"]["filter"])
    return (
        f"{facts['method']} Batch 1, fp32, norms folded, random weights, one run. All plain 3x3 convolutions in which "
        "rank R saves MACs are decomposed, Tucker-2 and spatial SVD to no more MACs than the filter level of that rank "
        "(RetinaNet: backbone, neck and head). Speed-up over the dense model in the same runtime:\n\n"
        + table(["model, image", "runtime", "dense, ms", "method", *(f"R = {rank}" for rank in ranks)], rows)
    )
