"""Tables of a compression report for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from norton_plugin.insight.numbers import change, percent, short
from norton_plugin.pipeline import CompressionReport, LayerReport

_SHOWN = 4


def plain_table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    """An empty table in the house's look.

    Args:
        title: Above the table.
        left: Headings of the first columns, aligned left.
        right: Headings of the columns after them, aligned right, never wrapped.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def totals_table(report: CompressionReport) -> Table:
    """MACs and parameters of the whole model, before, after and down by."""
    table = plain_table("Totals", [""], ["before", "after", "change"])
    for name, before, after in (
        ("MACs", report.macs_before, report.macs_after),
        ("parameters", report.parameters_before, report.parameters_after),
    ):
        table.add_row(name, short(before), short(after), change(before, after))
    return table


def layers_table(report: CompressionReport, *, all_layers: bool = False) -> Table:
    """Layer by layer what changed.

    Args:
        report: Of ``compress``.
        all_layers: Also those that stayed as they were.
    """
    headings = ["rank", "NMSE", "channels kept", "MACs", "after", "change", "parameters", "after"]
    table = plain_table("Layers", ["layer", "kind"], headings)
    for layer in report.layers:
        if all_layers or _changed(layer):
            table.add_row(
                layer.name,
                layer.kind,
                "-" if layer.rank is None else str(layer.rank),
                "-" if layer.nmse is None else f"{layer.nmse:.3f}",
                percent(layer.kept),
                short(layer.macs_before),
                short(layer.macs_after),
                change(layer.macs_before, layer.macs_after),
                short(layer.parameters_before),
                short(layer.parameters_after),
            )
    return table


def skipped_table(report: CompressionReport) -> Table:
    """Every reason for which something was left as it was, with the names it holds for."""
    table = plain_table(
        "Left as they were (docs/reasons.md explains each code)", ["phase", "code", "reason"], ["layers"]
    )
    table.add_column("names", overflow="fold")
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
