"""What fitting the layers to images did, for the terminal."""

from __future__ import annotations

from norton_plugin.calibration import CalibrationReport
from norton_plugin.insight.fitted_table import Column, FittedTable
from norton_plugin.pipeline.wording import compared_on

_SHOWN = 3
_COLUMNS = (
    Column("kind"),
    Column("target"),
    Column("layers", number=True),
    Column("error of outputs\nbefore", number=True),
    Column("error of outputs\nafter", number=True),
    Column("note", optional=1),
)


def calibration_table(report: CalibrationReport) -> FittedTable:
    """Tell what layers were fitted to, how far their outputs are from that, and what is left as it was and why.

    Errors are means over layers of the squared error over the variance of the target. The title tells how far the
    model's outputs are from the dense model's, and on which images.
    """
    stages = ", ".join(f"{stage} {value:.4g}" for stage, value in report.divergence.items())
    images = "1 image" if report.images == 1 else f"{report.images} images"
    title = f"Fitted to {images}; divergence on {compared_on(report)}: {stages}; kept: {report.chosen}"
    table = FittedTable(title, _COLUMNS)
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for layer in report.layers:
        kind = "decomposed" if layer.decomposed else "dense"
        groups.setdefault((kind, layer.target, layer.note), []).append((layer.nmse_before, layer.nmse_after))
    for (kind, target, note), errors in groups.items():
        before, after = (sum(column) / len(errors) for column in zip(*errors, strict=True))
        table.add_row(kind, target, str(len(errors)), f"{before:.3f}", f"{after:.3f}", note or "-")
    reasons: dict[str, list[str]] = {}
    for name, reason in report.left:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        table.add_row("left", "-", str(len(names)), "-", "-", f"{reason}: {', '.join(names[:_SHOWN])}{more}")
    return table
