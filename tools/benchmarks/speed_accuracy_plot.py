"""Draws ``speed_accuracy.json``: a panel for each network, speed-up against accuracy, MACs beside each point."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_KINDS = {
    "decomposition": ("decomposed", "#1f5fa8", "o"),
    "hybrid": ("decomposed and pruned", "#c2410c", "s"),
    "pruning": ("pruned", "#4f8f3a", "^"),
    "dense": ("dense", "#444444", "D"),
}
_MEASURES = {"ResNet-20, CIFAR-10": "top-1 accuracy, %", "RetinaNet R18, blood cells": "mAP, %"}


def draw(facts: Mapping[str, Any], path: Path) -> None:
    """Write the picture.

    Args:
        facts: The content of ``speed_accuracy.json``.
        path: Its suffix names the format.
    """
    matplotlib.rcParams["svg.hashsalt"] = "norton"  # the same file from the same figures
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = facts["panels"]
    for axes, (title, rows) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for kind, (label, colour, marker) in _KINDS.items():
            own = sorted((row for row in rows if row["name"].startswith(kind)), key=lambda row: row["speed_up"])
            x, y = [row["speed_up"] for row in own], [row["accuracy"] for row in own]
            axes.plot(x, y, marker, color=colour, label=label, linestyle="-" if len(own) > 1 else "none")
        for row in rows:
            words, at = f"{100 * row['macs_share']:.0f} %", (row["speed_up"], row["accuracy"])
            axes.annotate(words, at, textcoords="offset points", xytext=(7, 4), fontsize=8, color="#59636e")
        dense = next(row for row in rows if row["name"] == "dense")
        axes.axhline(dense["accuracy"], color=_KINDS["dense"][1], linestyle=":", linewidth=1)
        low = min(row["accuracy"] for row in rows)
        margin = max(dense["accuracy"] - low, 1.0)
        axes.set_ylim(low - 0.25 * margin, dense["accuracy"] + 0.25 * margin)
        axes.set_xlim(0.9, 1.1 * max(row["speed_up"] for row in rows))
        batch = facts["batches"][title]
        axes.set_title(f"{title} (batch {batch})", fontsize=10)
        axes.set_xlabel("times as fast as dense, one CPU thread")
        axes.set_ylabel(_MEASURES[title])
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
