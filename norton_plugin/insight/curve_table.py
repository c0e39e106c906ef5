"""The curves of a model's layers as tables: one for all layers of equal shape."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from norton_plugin.insight.curve import PARTS, CurvePoint, LayerCurve
from norton_plugin.insight.fitted_table import Column, FittedTable
from norton_plugin.insight.numbers import percent, short

_LEVELS = ("filter", "layer", "cluster", "spatial")


def curve_tables(curves: Sequence[LayerCurve]) -> list[FittedTable]:
    """Return one table for each shape of layers; where errors were measured, their mean over these layers.

    Args:
        curves: As of ``cost_curves``.
    """
    alike: dict[object, list[LayerCurve]] = {}
    for curve in curves:
        alike.setdefault((curve.kind, curve.shape), []).append(curve)
    return [_table(group) for group in alike.values()]


def _table(group: Sequence[LayerCurve]) -> FittedTable:
    first = group[0]
    levels = [level for level in _LEVELS if any(point.level == level for point in first.points)]
    measured = any(point.nmse is not None for point in first.points)
    columns = [Column("")]
    for level in levels:
        columns += _columns(first, level, measured=measured)
    table = FittedTable(_title(group), columns)
    points = {(p.step, p.level): [c.points[i] for c in group] for i, p in enumerate(first.points)}
    for step in sorted({step for step, _ in points}):
        cells = [f"{step}/{PARTS} of the MACs" if first.shape.pointwise else f"rank {step}"]
        for level in levels:
            cells += _cells(points.get((step, level)), level, measured=measured)
        table.add_row(*cells)
    return table


def _title(group: Sequence[LayerCurve]) -> str:
    shape, more = group[0].shape, len(group) - 1
    names = f"{group[0].name}{f' and {more} of the same shape' if more else ''}"
    kernel = "" if group[0].kind == "Linear" else f" {'x'.join(map(str, shape.kernel_size))}"
    groups = f" in {shape.groups} groups" if shape.groups > 1 else ""
    widths = f"{shape.channels * shape.groups} -> {shape.filters}{groups}"
    return f"{names}\n{group[0].kind}{kernel} {widths}, {short(shape.dense_macs)} MACs"


def _columns(curve: LayerCurve, level: str, *, measured: bool) -> list[Column]:
    error = [Column("NMSE", number=True)] if measured else []
    if level == "filter":
        return [Column("filter:\nMACs", number=True), *error]
    clusters = next(point.clusters for point in curve.points if point.level == level)
    heading = f"{clusters} clusters:" if level == "cluster" else f"{level}:"
    # Next to those of the filter level, its MACs say the least.
    return [Column(f"{heading}\ncomponents", number=True), Column("MACs", number=True, optional=1), *error]


def _cells(points: Sequence[CurvePoint] | None, level: str, *, measured: bool) -> list[str]:
    if points is None:
        return ["-"] * ((1 if level == "filter" else 2) + measured)
    size = [] if level == "filter" else [str(points[0].components)]
    errors = [point.nmse for point in points if point.nmse is not None]
    return [*size, percent(points[0].share), *([f"{fmean(errors):.3f}"] if measured else [])]
