"""Plots without a display."""

import sys

import pytest

from norton_plugin.errors import MissingExtraError
from norton_plugin.insight import TradeOffPoint, plot_trade_off

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


def test_missing_matplotlib_names_the_pip_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'norton-plugin\[insight\]'"):
        plot_trade_off(tmp_path / "a.png", POINTS, dense=97.0, title="digits")
