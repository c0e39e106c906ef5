"""Speed of every model and runtime as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from norton_plugin.bench.report import BenchReport, Setting
from norton_plugin.insight.plots import new_figure

_DENSE, _COMPRESSED = "#8a8a8a", "#1f5fa8"


def plot_speed(path: str | Path, report: BenchReport) -> Path:
    """Draw milliseconds of every model and runtime, one panel per setting.

    Args:
        path: Of the picture; its suffix names the format.
        report: Of `bench`.

    Returns:
        The path.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure()
    rows = max(len(setting.timings) for setting in report.settings)
    figure.set_size_inches(9, len(report.settings) * (0.34 * rows + 1.1))
    for place, setting in enumerate(report.settings, start=1):
        _panel(figure.add_subplot(len(report.settings), 1, place), setting)
    figure.suptitle(f"{report.macs_ratio:.2f} times fewer MACs, on {report.device}", fontsize=11)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    return target


def _panel(axes: Any, setting: Setting) -> None:
    timings = setting.timings[::-1]
    places = range(len(timings))
    values = [timing.milliseconds for timing in timings]
    spread = [[t.milliseconds - t.low for t in timings], [t.high - t.milliseconds for t in timings]]
    colors = [_DENSE if timing.efficiency is None else _COMPRESSED for timing in timings]
    axes.barh(places, values, xerr=spread, color=colors, height=0.72, error_kw={"ecolor": "#333333", "lw": 1})
    axes.set_yticks(places, [f"{timing.model} ({timing.runtime})" for timing in timings], fontsize=8)
    for place, timing in zip(places, timings, strict=True):
        text = f" {timing.milliseconds:.3g} ms" + ("" if timing.efficiency is None else f", {timing.speed_up:.2f}x")
        axes.text(timing.high, place, text, va="center", fontsize=8)
    axes.set_xlim(0, 1.25 * max(timing.high for timing in timings))
    images, threads = f"batch {setting.batch}", f"{setting.threads} thread" + "s" * (setting.threads > 1)
    axes.set_xlabel(f"milliseconds, {images}, {threads}; lines are quartiles", fontsize=9)
    axes.grid(axis="x", alpha=0.3)
