"""Geometry of the page's charts, in the units of their view boxes; the template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from norton_plugin.insight.page.stored import StoredLayer, StoredMap

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 40
SHADES = 8


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """One layer in a scatter chart."""

    x: float
    y: float
    title: str
    shared: bool


@dataclass(frozen=True)
class Scatter:
    """NMSE against rank."""

    dots: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    logarithmic: bool


@dataclass(frozen=True)
class Shade:
    """All cells of a heat map of one shade: the outline of their squares, and what they mean."""

    level: int
    path: str
    title: str


@dataclass(frozen=True)
class Row:
    """One filter of a heat map."""

    number: int
    removed: bool
    title: str


@dataclass(frozen=True)
class HeatMap:
    """Distances between filters; cell (i, j) is the unit square at (j, i)."""

    root: str
    before: int
    after: int
    rows: tuple[Row, ...]
    shades: tuple[Shade, ...]


def round_ticks(largest: float, *, count: int = 5) -> list[float]:
    """Return ticks from 0 to the first multiple of 1, 2 or 5 times a power of ten that is not below the largest.

    Args:
        largest: Above 0.
        count: Steps at most.
    """
    rough = largest / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(largest / step - 1e-9) + 1)]


def scatter(layers: Sequence[StoredLayer]) -> Scatter | None:
    """Return NMSE against rank, or components, of all decomposed layers; None where there is none."""
    points = [(each, each.size, each.nmse) for each in layers if each.size and each.nmse is not None]
    if not points:
        return None
    sizes = [size for _, size, _ in points if size]
    logarithmic = max(sizes) / min(sizes) > 16
    y_ticks = round_ticks(max(nmse or 0.0 for *_, nmse in points) or 1.0)
    if logarithmic:
        first, last = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)))
        step = max(1, math.ceil((last - first) / 6))
        last = first + step * math.ceil((last - first) / step)
        x_ticks = [2.0**power for power in range(first, last + 1, step)]
    else:
        x_ticks = [tick for tick in round_ticks(max(sizes) + 0.5) if tick == int(tick)]

    def across(value: float) -> float:
        low, high = x_ticks[0], x_ticks[-1]
        share = math.log(value / low) / math.log(high / low) if logarithmic else value / high
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / y_ticks[-1] * (HEIGHT - TOP - BOTTOM), 1)

    dots = tuple(
        Dot(
            across(size or 1),
            up(nmse or 0.0),
            f"{layer.name}: {'rank' if layer.components is None else 'components'} {size}, NMSE {nmse:.4f}",
            layer.components is not None,
        )
        for layer, size, nmse in points
    )
    return Scatter(
        dots,
        tuple(Tick(across(tick), f"{tick:g}") for tick in x_ticks),
        tuple(Tick(up(tick), f"{tick:g}") for tick in y_ticks),
        logarithmic,
    )


def heat_map(stored: StoredMap) -> HeatMap:
    """Return the map of one group's distances, in shades from the closest of its pairs to the furthest."""
    size = len(stored.filters)
    pairs = [stored.rows[i][j] for i in range(size) for j in range(i)]
    low, high = min(pairs), max(pairs)
    step = (high - low) / SHADES or 1.0
    cells: dict[int, list[str]] = {}
    for i, row in enumerate(stored.rows):
        for j, value in enumerate(row):
            if i != j:
                level = min(SHADES - 1, int((value - low) / step + 1e-9))
                cells.setdefault(level, []).append(f"M{j} {i}h1v1h-1z")
    shades = tuple(
        Shade(level, "".join(cells[level]), _range(low + level * step, step, stored.average)) for level in sorted(cells)
    )
    rows = []
    for i, number in enumerate(stored.filters):
        nearest = min((j for j in range(size) if j != i), key=lambda j: stored.rows[i][j])
        share = stored.rows[i][nearest] / stored.average if stored.average else 0.0
        fate = "removed" if number in stored.removed else "kept"
        near = f"nearest to filter {stored.filters[nearest]}, at {share:.2f} of the average distance"
        rows.append(Row(number, number in stored.removed, f"filter {number}, {fate}: {near}"))
    return HeatMap(stored.root, stored.before, stored.after, tuple(rows), shades)


def _range(low: float, step: float, average: float) -> str:
    return f"{low / average:.2f} to {(low + step) / average:.2f}" if average else "0"
