"""Milliseconds on this device: of layers in all sizes they may become, and of whole models as they are delivered."""

from norton_plugin.latency.delivered import DeliveredModels, Timing
from norton_plugin.latency.layer_clock import LayerClock
from norton_plugin.latency.layers import timed_layers
from norton_plugin.latency.skeleton import skeleton
from norton_plugin.latency.table import TABLE, LatencyTable, read_table

__all__ = [
    "TABLE",
    "DeliveredModels",
    "LatencyTable",
    "LayerClock",
    "Timing",
    "read_table",
    "skeleton",
    "timed_layers",
]
