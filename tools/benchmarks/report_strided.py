"""The section on layers of stride 2: filter level, layer level and spatial SVD at equal MACs and at equal time."""

from __future__ import annotations

import statistics
from typing import Any

from report_table import Facts, table

NAMES = {"filter": "filter level", "layer": "layer level", "spatial": "spatial SVD"}


def strided(facts: Facts) -> str:
    """Error and latency at stride 2."""
    rows = []
    for entry in facts["rows"]:
        for share, found in _by_share(entry).items():
            layer, spatial = found["layer"], found["spatial"]
            rows.append(
                [
                    entry["shape"],
                    entry["runtime"],
                    f"{100 * float(share):.0f}",
                    *(f"{each['size']}: {each['nmse']:.3f}" for each in (layer, spatial)),
                    *(f"{100 * each['share_of_dense_time']:.0f}" for each in (layer, spatial)),
                ]
            )
    header = ["layer", "runtime", "MACs %", "layer level, M: NMSE", "spatial SVD, M: NMSE"]
    return (
        f"{facts['method']} Batch 1, fp32, PyTorch {facts['torch']}. Weights as in the section above. Time is a share "
        "of the dense layer's in the same runtime.\n\n"
        + table([*header, "layer level, time %", "spatial SVD, time %"], rows)
        + f"\n\n{_verdict(facts['rows'])}"
    )


def _by_share(entry: dict[str, Any]) -> dict[float, dict[str, Any]]:
    found: dict[float, dict[str, Any]] = {}
    for point in entry["points"]:
        found.setdefault(point["share"], {})[point["method"]] = point
    return found


def _verdict(rows: list[dict[str, Any]]) -> str:
    """Say how the spatial SVD compares at equal MACs, and who is ahead at equal time."""
    pairs = [(found["layer"], found["spatial"]) for entry in rows for found in _by_share(entry).values()]
    errors = [spatial["nmse"] / layer["nmse"] for layer, spatial in pairs]
    times = [spatial["share_of_dense_time"] / layer["share_of_dense_time"] for layer, spatial in pairs]
    close = [time for time, error in zip(times, errors, strict=True) if error > 1]
    ahead = [point["lowest"] for entry in rows for point in entry["at_equal_time"] if point["lowest"]]
    counts = ", ".join(f"{name} {ahead.count(level)}" for level, name in NAMES.items() if ahead.count(level))
    return (
        f"At equal MACs the error of the spatial SVD is {min(errors):.2f} to {max(errors):.2f} times that of the layer "
        f"level, its time {min(times):.2f} to {max(times):.2f} times (median {statistics.median(times):.2f}); where it "
        f"errs more, {len(close)} of {len(pairs)} points, the median is {statistics.median(close):.2f}. Lowest error "
        f"within 25, 33, 50 and 67 % of the dense time, {len(ahead)} points: {counts}. Hence the rule of level `auto` "
        "for layers with a stride in both directions: at equal MACs the spatial SVD is taken where its error is at "
        "most 1.05 times the lowest."
    )
