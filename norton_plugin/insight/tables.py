"""Tables of a compression report for the terminal."""

from __future__ import annotations

from norton_plugin.insight.fitted_table import Column, FittedTable
from norton_plugin.insight.numbers import change, percent, short
from norton_plugin.pipeline import LEVEL_HEADINGS, CompressionReport, LayerReport, level_cells

_SHOWN = 4
_LAYER_COLUMNS = (
    Column("layer"),
    Column("kind", optional=3),
    *(Column(heading, number=heading != "level") for heading in LEVEL_HEADINGS),
    Column("NMSE", number=True),
    Column("channels\nkept", number=True, optional=1),
    Column("MACs\nbefore", number=True, optional=2),
    Column("MACs\nafter", number=True),
    Column("change", number=True),
    Column("parameters\nbefore", number=True, optional=4),
    Column("parameters\nafter", number=True, optional=5),
)
_SKIPPED_COLUMNS = (Column("phase"), Column("code"), Column("reason"), Column("layers", number=True), Column("names"))


def totals_table(report: CompressionReport) -> FittedTable:
    """Tell MACs and parameters of the whole model, before and after, and how far pruning came where there was any."""
    tried = report.pruning.groups or report.pruning.skipped
    table = FittedTable(
        f"Totals (pruning: {report.status})" if tried else "Totals",
        [Column(""), *(Column(h, number=True) for h in ("before", "after", "change"))],
    )
    for name, before, after in (
        ("MACs", report.macs_before, report.macs_after),
        ("parameters", report.parameters_before, report.parameters_after),
    ):
        table.add_row(name, short(before), short(after), change(before, after))
    return table


def layers_table(report: CompressionReport, *, all_layers: bool = False) -> FittedTable:
    """Layer by layer what changed.

    Args:
        report: Of ``compress``.
        all_layers: Also those that stayed as they were.
    """
    table = FittedTable("Layers", _LAYER_COLUMNS)
    for layer in report.layers:
        if all_layers or _changed(layer):
            table.add_row(
                layer.name,
                layer.kind,
                *level_cells(layer),
                "-" if layer.nmse is None else f"{layer.nmse:.3f}",
                percent(layer.kept),
                short(layer.macs_before),
                short(layer.macs_after),
                change(layer.macs_before, layer.macs_after),
                short(layer.parameters_before),
                short(layer.parameters_after),
            )
    return table


def skipped_table(report: CompressionReport) -> FittedTable:
    """Return every reason for which something was left as it was, with the names it holds for."""
    table = FittedTable("Left as they were (docs/reasons.md explains each code)", _SKIPPED_COLUMNS)
    for phase, entries in (("decomposition", report.decomposition.skipped), ("pruning", report.pruning.skipped)):
        reasons: dict[tuple[str, str], list[str]] = {}
        for entry in entries:
            reasons.setdefault((entry.code, entry.reason), []).append(entry.name)
        for (code, reason), names in sorted(reasons.items(), key=lambda item: -len(item[1])):
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            table.add_row(phase, code, reason, str(len(names)), ", ".join(names[:_SHOWN]) + more)
    return table


def _changed(layer: LayerReport) -> bool:
    before = (layer.macs_before, layer.parameters_before)
    return layer.rank is not None or before != (layer.macs_after, layer.parameters_after)
