"""What a compression came to, for the eye: tables for the terminal and plots."""

from norton_plugin.insight.numbers import change, percent, short
from norton_plugin.insight.plots import TradeOffPoint, plot_trade_off
from norton_plugin.insight.tables import layers_table, skipped_table, totals_table

__all__ = [
    "TradeOffPoint",
    "change",
    "layers_table",
    "percent",
    "plot_trade_off",
    "short",
    "skipped_table",
    "totals_table",
]
