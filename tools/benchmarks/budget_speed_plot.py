"""Draws accuracy against the speed as delivered of models compressed to budgets: the picture at the top of the README.

Figures are those of ``wide.json``, ``bccd_speed.json`` and ``bccd_norms.json``.

    python tools/benchmarks/budget_speed_plot.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_RUNTIMES = {"PyTorch": "#1f5fa8", "onnxruntime": "#c2410c"}
_KINDS = {"macs": ("budget of MACs", "o"), "latency": ("budget of milliseconds", "s"), "pruned": ("pruned alone", "^")}
# First words of the detectors' names.
_OF_DETECTORS = {"budget": "macs", "latency": "latency", "pruning,": "pruned"}
_DENSE_ALIKE = "dense, rate 0.0001, statistics kept"
_LEAST_RANGE = 3.0  # points of accuracy that a panel shows
_GREY, _DARK = "#59636e", "#444444"


@dataclass(frozen=True)
class Point:
    """A compressed model.

    Attributes:
        kind: Of ``_KINDS``.
        macs_share: MACs left.
        accuracy: In percent.
        speed_ups: Over the dense model, by runtime.
    """

    kind: str
    macs_share: float
    accuracy: float
    speed_ups: dict[str, float]


def classifiers(folder: Path) -> tuple[dict[str, float], list[Point]]:
    """Return the accuracy of the dense wide classifier by name, and what came of it without a label."""
    rows = json.loads((folder / "wide.json").read_text())["variants"].values()
    steps = {"fitted", "both"}  # where both phases were tried and decomposition was kept, that is another point already
    own = [row for row in rows if row["step"] in steps and "speed" in row]
    own = [row for row in own if row["step"] == "fitted" or row["phases"] != "decomposition"]
    points = [Point(row["of"], row["macs_share"], row["top1"], _speed_ups(row["speed"]["runtimes"])) for row in own]
    return {"dense": own[0]["top1_dense"]}, points


def detectors(folder: Path) -> tuple[dict[str, float], list[Point]]:
    """Return the mAP of the dense blood cell detector by name, and what came of it after fine-tuning."""
    facts = json.loads((folder / "bccd_speed.json").read_text())
    own = [(_OF_DETECTORS.get(name.split()[0]), row) for name, row in facts["variants"].items()]
    points = [Point(kind, row["macs_share"], row["map"], _speed_ups(row["runtimes"])) for kind, row in own if kind]
    tuned = json.loads((folder / "bccd_norms.json").read_text())["variants"][_DENSE_ALIKE]["finetuned_mean"]["map"]
    return {"dense": facts["dense_map"], "dense, fine-tuned alike": tuned}, points


def _speed_ups(runtimes: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: runtimes[name]["speed_up"] for name in _RUNTIMES if name in runtimes}


def draw_panel(axes: Axes, dense: Mapping[str, float], points: Sequence[Point], *, title: str, measure: str) -> None:
    """Draw one network: every model once for each runtime, its MACs beside it."""
    for kind, (_, marker) in _KINDS.items():
        for runtime, colour in _RUNTIMES.items():
            own = [point for point in points if point.kind == kind and runtime in point.speed_ups]
            x, y = [point.speed_ups[runtime] for point in own], [point.accuracy for point in own]
            axes.plot(x, y, marker, color=colour, linestyle="none")
            for point, at in zip(own, zip(x, y, strict=True), strict=True):
                beside = f"{100 * point.macs_share:.0f} %"
                axes.annotate(beside, at, textcoords="offset points", xytext=(6, 4), fontsize=8, color=_GREY)
    for name, value in dense.items():
        axes.plot([1], [value], "D", color=_DARK)
        axes.axhline(value, color=_DARK, linestyle=":", linewidth=1)
        axes.text(0.99, value, name, transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    values = [*dense.values(), *(point.accuracy for point in points)]
    margin = max(0.15 * (max(values) - min(values)), (_LEAST_RANGE - max(values) + min(values)) / 2)
    axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.set_xlim(0.8, 1.12 * max(speed for point in points for speed in point.speed_ups.values()))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("times as fast as the dense model in the same runtime")
    axes.set_ylabel(measure)
    axes.grid(alpha=0.3)


def legend(axes: Axes) -> None:
    """Name colours and markers, whichever of them a panel has."""
    for runtime, colour in _RUNTIMES.items():
        axes.plot([], [], "o", color=colour, linestyle="none", label=runtime)
    for words, marker in _KINDS.values():
        axes.plot([], [], marker, color=_GREY, linestyle="none", label=words)
    axes.legend(fontsize=8, loc="lower left")


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description="Accuracy against speed of models compressed to budgets.")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    folder = parser.parse_args().results
    matplotlib.rcParams["svg.hashsalt"] = "norton"  # the same file from the same figures
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    title = "ResNet-26, 64 pixels: no labels, no training"
    draw_panel(left, *classifiers(folder), title=title, measure="top-1 accuracy, %")
    title = "RetinaNet, blood cells: 12 epochs of fine-tuning"
    draw_panel(right, *detectors(folder), title=title, measure="mAP, %")
    legend(left)
    figure.savefig(folder / "budget_speed.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
