"""Draws docs/results/equal_latency.png from equal_latency.json: error against time, a panel per shape and runtime.

python tools/benchmarks/equal_latency_plot.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

STYLE = {
    "filter": ("filter level", "#1f5fa8", "o"),
    "cluster": ("cluster level", "#4f8f3a", "v"),
    "layer": ("layer level", "#c8442c", "s"),
    "tucker2": ("Tucker-2", "#d99a1c", "^"),
    "svd_spatial": ("spatial SVD", "#7a5aa6", "D"),
}
SHAPES = ("64x56x56", "128x56x56 /2", "128x28x28", "256x14x14", "512x7x7")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the shapes that ResNet-50 has, PyTorch above and onnxruntime below.

    Args:
        rows: As ``equal_latency.py`` writes them.
        path: Of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = [shape for shape in SHAPES if any(row["shape"] == shape for row in rows)]
    runtimes = list(dict.fromkeys(row["runtime"] for row in rows))
    size = (2.7 * len(shapes) + 1, 2.7 * len(runtimes) + 0.5)
    figure, axes = pyplot.subplots(len(runtimes), len(shapes), figsize=size, squeeze=False, layout="constrained")
    for row in rows:
        if row["shape"] not in shapes:
            continue
        axis = axes[runtimes.index(row["runtime"])][shapes.index(row["shape"])]
        for method, (label, colour, marker) in STYLE.items():
            own = sorted((p["share_of_dense_time"], p["nmse"]) for p in row["points"] if p["method"] == method)
            axis.plot(*zip(*own, strict=True), marker=marker, markersize=4, linewidth=1.2, color=colour, label=label)
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=f"{row['shape']}, {row['runtime']}", xlim=(0, 1.4), yscale="log", ylim=(0.04, 1))
        axis.grid(alpha=0.3)
    figure.supxlabel("time over the dense layer's (dotted: dense)")
    figure.supylabel("NMSE of the weight")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(STYLE), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of equal_latency.json")
    folder = parser.parse_args().results
    plot(json.loads((folder / "equal_latency.json").read_text())["rows"], folder / "equal_latency.png")


if __name__ == "__main__":
    main()
