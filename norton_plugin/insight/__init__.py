"""What a model consists of and what a compression came to: inspection, tables for the terminal and plots."""

from norton_plugin.insight.calibration_table import calibration_table
from norton_plugin.insight.curve import PARTS, CurvePoint, LayerCurve, cost_curves
from norton_plugin.insight.curve_table import curve_tables
from norton_plugin.insight.fitted_table import Column, FittedTable
from norton_plugin.insight.forms_note import note_on_forms
from norton_plugin.insight.front import FrontPoint, front_table, model_front
from norton_plugin.insight.inspection import InspectedLayer, Inspection, inspect_model
from norton_plugin.insight.numbers import change, percent, short
from norton_plugin.insight.plots import TradeOffPoint, plot_trade_off
from norton_plugin.insight.tables import layers_table, skipped_table, totals_table

__all__ = [
    "PARTS",
    "Column",
    "CurvePoint",
    "FittedTable",
    "InspectedLayer",
    "Inspection",
    "LayerCurve",
    "TradeOffPoint",
    "calibration_table",
    "change",
    "cost_curves",
    "FrontPoint",
    "curve_tables",
    "front_table",
    "model_front",
    "inspect_model",
    "layers_table",
    "note_on_forms",
    "percent",
    "plot_trade_off",
    "short",
    "skipped_table",
    "totals_table",
]
