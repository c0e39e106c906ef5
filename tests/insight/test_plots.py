"""Plots without a display."""

import sys

import pytest

from norton_plugin.errors import MissingExtraError
from norton_plugin.insight import TradeOffPoint, plot_trade_off, plots

POINTS = [TradeOffPoint("rank 3", 0.4, 80.0, 95.0), TradeOffPoint("rank 1", 0.15, 30.0, 90.0)]


def test_picture_is_written_and_depends_on_the_points(tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="needs matplotlib: pip install 'norton-plugin[insight]'")
    loaded = "matplotlib.pyplot" in sys.modules
    pictures = [
        image.imread(plot_trade_off(tmp_path / "new" / f"{n}.png", POINTS[:n], dense=97.0, title="digits"))
        for n in (1, 2)
    ]
    assert pictures[0].shape == (660, 1050, 4)
    assert (pictures[0] != pictures[1]).any()
    assert ("matplotlib.pyplot" in sys.modules) is loaded, "drawing must not switch a session's backend on"


def test_lines_and_labels_are_those_of_the_points(tmp_path, monkeypatch):
    """Shares in percent from the smallest model to the largest, whatever the order of the points."""
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'norton-plugin[insight]'")
    figure = plots.new_figure()
    monkeypatch.setattr(plots, "new_figure", lambda: figure)
    plot_trade_off(tmp_path / "a.png", POINTS, dense=97.0, title="digits")
    [axes] = figure.axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines["dense, 97.0 %"] == ([100], [97.0])
    assert lines["compressed, before fine-tuning"] == ([15.0, 40.0], [30.0, 80.0])
    assert lines["compressed, after fine-tuning"] == ([15.0, 40.0], [90.0, 95.0])
    labels = {text.xy: text.get_text() for text in axes.texts}
    assert labels == {(15.0, 90.0): "rank 1\n90.0 %", (40.0, 95.0): "rank 3\n95.0 %"}
    assert axes.get_title() == "digits" and axes.get_xlim() == (0, 108)
    low, high = axes.get_ylim()
    assert low < 30 and high > 97  # every point and the dense line are inside


def test_missing_matplotlib_names_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'norton-plugin\[insight\]'"):
        plot_trade_off(tmp_path / "a.png", POINTS, dense=97.0, title="digits")
