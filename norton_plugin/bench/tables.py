"""Tables of a benchmark for the terminal."""

from __future__ import annotations

from norton_plugin.bench.report import BenchReport, Setting
from norton_plugin.insight import Column, FittedTable, short

_TIMES = (
    Column("model"),
    Column("runtime"),
    Column("ms", number=True),
    Column("quartiles", number=True, optional=2),
    Column("speed-up\nthere", number=True),
    Column("over dense\nin PyTorch", number=True, optional=1),
    Column("efficiency", number=True),
    Column("peak\nMiB", number=True, optional=3),
)
_LAYERS = (
    Column("layer"),
    Column("MACs\nbefore", number=True, optional=1),
    Column("MACs\nafter", number=True, optional=2),
    Column("fewer\nMACs", number=True),
    Column("ms\ndense", number=True, optional=3),
    Column("ms", number=True),
    Column("speed-up", number=True),
    Column("efficiency", number=True),
    Column("verdict"),
)


def times_table(setting: Setting) -> FittedTable:
    """Tell the time of every model in every runtime at one setting."""
    threads = f"{setting.threads} thread" + "s" * (setting.threads > 1)
    table = FittedTable(f"Batch {setting.batch}, {threads}, medians of {setting.rounds} calls in turn", _TIMES)
    for timing in setting.timings:
        table.add_row(
            timing.model,
            timing.runtime,
            f"{timing.milliseconds:.2f}",
            f"{timing.low:.2f}-{timing.high:.2f}",
            f"{timing.speed_up:.2f}x",
            f"{timing.speed_up_in_all:.2f}x",
            "-" if timing.efficiency is None else f"{timing.efficiency:.2f}",
            "-" if timing.peak_mib is None else f"{timing.peak_mib:.1f}",
        )
    return table


def changed_layers_table(report: BenchReport) -> FittedTable:
    """Tell the time of every changed layer, beside that of the dense one."""
    first = report.settings[0]
    table = FittedTable(f"Changed layers as delivered, PyTorch, batch {first.batch}", _LAYERS)
    for layer in report.layers:
        table.add_row(
            layer.name,
            short(layer.macs_dense),
            short(layer.macs),
            f"{layer.macs_dense / max(layer.macs, 1):.2f}x",
            f"{layer.milliseconds_dense:.3f}",
            f"{layer.milliseconds:.3f}",
            f"{layer.speed_up:.2f}x",
            f"{layer.efficiency:.2f}",
            layer.verdict,
        )
    return table
