"""The section on criteria with and without compensation, and on budgets that also prune."""

from __future__ import annotations

from report_table import Facts, table

_TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}


def hybrid_budget(facts: Facts) -> str:
    """Return accuracy by criterion, and of each phase alone against both, at equal budgets."""
    rows = sorted(facts["variants"].values(), key=lambda row: (row["network"], -row["budget"], -row["top1"]))
    parts = [
        f"{facts['data']}. Seconds are those of the whole compression on a shared machine.",
        "Pruning alone: the same share of inner channels everywhere, by criterion (`pabs` compares the filters of "
        "dense layers as vectors here). As cut: BatchNorm statistics re-estimated on the images; compensated: layers "
        "fitted to what they see.",
        _criteria([row for row in rows if row["part"] == "criteria"]),
    ]
    plans = [row for row in rows if row["part"] == "plans"]
    if plans:
        parts += [
            "Budgets with `prune` (`--prune`, criterion `output`): every plan that is tried; the one of the lowest "
            "divergence on held-back images is the one that a user gets. Planning, in seconds, comes once for all.",
            _plans(plans),
        ]
    return "\n\n".join(parts)


def _criteria(rows: list[Facts]) -> str:
    found: dict[tuple[str, float, str, int], Facts] = {}
    for row in rows:
        entry = found.setdefault((row["network"], row["budget"], row["variant"], row["seed"]), dict(row))
        entry["compensated top1" if row["compensated"] else "plain top1"] = row["top1"]
        entry["seconds"] = max(entry.get("seconds", 0.0), row["wall_seconds"])
    cells = [
        [
            _TITLES[row["network"]],
            f"{100 * row['macs_share']:.1f}",
            row["variant"],
            f"{row['top1_dense']:.2f}",
            f"{row['plain top1']:.2f}" if "plain top1" in row else "-",
            f"{row['compensated top1']:.2f}" if "compensated top1" in row else "-",
            row["calibration_images"],
            row["test_images"],
            row["seed"],
            f"{row['seconds']:.0f}",
        ]
        for row in found.values()
    ]
    header = ["network", "MACs %", "criterion", "dense top-1 %", "as cut, top-1 %", "compensated, top-1 %"]
    return table([*header, "images", "test images", "seed", "wall s"], cells)


def _plans(rows: list[Facts]) -> str:
    lowest: dict[tuple[str, float, str, int], float] = {}
    for row in rows:
        key = row["network"], row["budget"], row["level"], row["seed"]
        lowest[key] = min(row["divergence"], lowest.get(key, row["divergence"]))
    cells = [
        [
            _TITLES[row["network"]],
            f"{100 * row['budget']:g}",
            row["level"],
            row["variant"],
            f"{100 * row['macs_share']:.1f}",
            f"{row['top1_dense']:.2f}",
            f"{row['top1']:.2f}",
            f"{row['divergence']:.3f}",
            "yes" if row["divergence"] == lowest[row["network"], row["budget"], row["level"], row["seed"]] else "",
            row["test_images"],
            row["seed"],
            f"{row['planning_seconds']:.0f}",
            f"{row['wall_seconds']:.0f}",
        ]
        for row in sorted(rows, key=lambda row: (row["network"], -row["budget"], row["level"], row["divergence"]))
    ]
    header = ["network", "budget, MACs %", "level", "phases", "MACs %", "dense top-1 %", "top-1 %", "divergence, nats"]
    return table([*header, "kept", "test images", "seed", "planning s", "wall s"], cells)
