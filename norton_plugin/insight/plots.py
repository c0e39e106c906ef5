"""Plots, drawn by matplotlib's object interface without a display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from norton_plugin.errors import MissingExtraError

_BEFORE, _AFTER, _DENSE = "#d1792b", "#1f5fa8", "#444444"


@dataclass(frozen=True)
class TradeOffPoint:
    """One compressed model.

    Attributes:
        label: Beside the point.
        macs: Share of the dense model's MACs, above 0.
        before: Accuracy before fine-tuning, in percent.
        after: Accuracy after fine-tuning, in percent.
    """

    label: str
    macs: float
    before: float
    after: float


def plot_trade_off(path: str | Path, points: Sequence[TradeOffPoint], *, dense: float, title: str) -> Path:
    """Draw accuracy over MACs, before and after fine-tuning.

    Args:
        path: Of the picture; its suffix names the format.
        points: One or more compressed models.
        dense: Accuracy of the uncompressed model, in percent.
        title: Above the plot.

    Returns:
        The path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    ordered = sorted(points, key=lambda point: point.macs)
    macs = [100 * point.macs for point in ordered]
    axes.axhline(dense, color=_DENSE, linestyle=":", linewidth=1)
    axes.plot([100], [dense], "D", color=_DENSE, label=f"dense, {dense:.1f} %")
    axes.plot(macs, [p.before for p in ordered], "o--", color=_BEFORE, label="compressed, before fine-tuning")
    axes.plot(macs, [p.after for p in ordered], "o-", color=_AFTER, label="compressed, after fine-tuning")
    for point, x in zip(ordered, macs, strict=True):
        axes.annotate(
            f"{point.label}\n{point.after:.1f} %",
            (x, point.after),
            textcoords="offset points",
            xytext=(0, 9),
            ha="center",
            fontsize=8,
        )
    values = [dense, *(p.before for p in ordered), *(p.after for p in ordered)]
    low, high = min(values), max(values)
    margin = max(high - low, 1.0)
    axes.set_ylim(max(low - 0.12 * margin, -2.0), high + 0.3 * margin)
    axes.set_yticks([tick for tick in axes.get_yticks() if low - margin < tick <= 100])
    axes.set_xlim(0, 108)
    axes.set_xlabel("MACs, % of the dense model")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    return target


def new_figure() -> Any:
    """Return an empty ``matplotlib.figure.Figure`` that needs no display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib is not installed; run: pip install 'norton-plugin[insight]'") from error
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
