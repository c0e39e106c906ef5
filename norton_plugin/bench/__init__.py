"""Speed of a compressed model as it is delivered, beside the dense one: in every runtime, and layer by layer."""

from norton_plugin.bench.benchmark import RUNTIMES, bench
from norton_plugin.bench.layers import LayerSpeed
from norton_plugin.bench.plot import plot_speed
from norton_plugin.bench.report import BenchReport, Setting, Timing
from norton_plugin.bench.tables import changed_layers_table, times_table

__all__ = [
    "RUNTIMES",
    "BenchReport",
    "LayerSpeed",
    "Setting",
    "Timing",
    "bench",
    "changed_layers_table",
    "plot_speed",
    "times_table",
]
