"""A rising curve through measured points: a larger size is never taken for a faster one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def rising(values: Sequence[float]) -> Values:
    """Return the nearest values, in least squares, that never fall: neighbours that do are pooled to their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools]).astype(np.float64)


def interpolated(at: Sequence[int], places: Sequence[int], values: Sequence[float]) -> Values:
    """Return a rising curve through points, straight between them and level beyond both ends.

    Args:
        at: Where it is read.
        places: Of the points, ascending.
        values: Of the points.
    """
    return np.interp(np.asarray(at, float), np.asarray(places, float), rising(values))


def spread(sizes: Sequence[int], count: int) -> list[int]:
    """Return some of ascending sizes, the first and the last among them, in even ratios.

    Args:
        sizes: Different, ascending, at least one.
        count: Most that are returned, at least 2.
    """
    if len(sizes) <= count:
        return list(sizes)
    wanted = np.geomspace(sizes[0], sizes[-1], count)
    return sorted({min(sizes, key=lambda size: abs(size - wish)) for wish in wanted})
