"""The picture of ``levels.json``: error and accuracy against MACs, one line per method."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

LABELS = {
    "filter": ("filter level (K = N)", "#1f5fa8", "o"),
    "clusters_of_4": ("clusters, K = N/4", "#5b8fc9", "<"),
    "clusters_of_8": ("clusters, K = N/8", "#9a9fb5", "P"),
    "cluster4": ("clusters, K = 4", "#cf9a8f", "X"),
    "cluster2": ("clusters, K = 2", "#d9705a", ">"),
    "layer": ("layer level (K = 1)", "#c8442c", "s"),
    "tucker2": ("Tucker-2", "#d99a1c", "^"),
    "svd_channels": ("SVD of N x (C Kh Kw)", "#4f8f3a", "v"),
    "svd_spatial": ("SVD of (C Kh) x (N Kw)", "#7a5aa6", "D"),
}
TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56"}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one column per network: mean NMSE of a layer above, accuracy below.

    Args:
        rows: Rows of ``levels.json``.
        path: Of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    networks = [name for name in TITLES if any(row["network"] == name for row in rows)]
    figure, axes = pyplot.subplots(
        2,
        len(networks),
        figsize=(5.2 * len(networks), 7.4),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey="row",
    )
    for column, network in enumerate(networks):
        for axis, key in zip(axes[:, column], ("mean_nmse", "top1"), strict=True):
            for method, (label, colour, marker) in LABELS.items():
                points = _points(rows, network, method, key)
                axis.plot(*zip(*points, strict=True), marker=marker, color=colour, label=label)
            axis.grid(alpha=0.3)
            axis.set(xlabel="MACs of the network, % of dense")
        dense = statistics.fmean(r["top1"] for r in rows if r["network"] == network and r["method"] == "dense")
        axes[1, column].axhline(dense, color="black", linewidth=1, linestyle=":", label="dense")
        axes[0, column].set(title=f"{TITLES[network]}, no fine-tuning", ylim=(0, None))
    axes[0, 0].set(ylabel="NMSE of the weight, mean over layers")
    axes[1, 0].set(ylabel="top-1 %, BatchNorm re-estimated", ylim=(0, 100))
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=5, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _points(rows: list[dict[str, Any]], network: str, method: str, key: str) -> list[tuple[float, float]]:
    """MACs in percent and the mean over the seeds, by budget."""
    chosen = [row for row in rows if row["network"] == network and row["method"] == method]
    budgets = sorted({row["budget_rank"] for row in chosen})
    groups = [[row for row in chosen if row["budget_rank"] == budget] for budget in budgets]
    return [(100 * group[0]["macs_share"], statistics.fmean(row[key] for row in group)) for group in groups]
