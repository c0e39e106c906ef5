"""Things found, such as boxes, compared in whatever order two runtimes return them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_KEY = 16  # numbers of one thing, of an output by which things are told apart: of a box, not of a mask


def compare_rows(expected: Sequence[Tensor], found: Sequence[Tensor], *, tolerance: float) -> tuple[float, int, int]:
    """Pair the rows of two lists of outputs, and tell how many are alike.

    Args:
        expected: Outputs (n, ...), one row of each for every thing.
        found: Likewise, (m, ...).
        tolerance: Of every value, over the largest value of that output; whole numbers have to be the same.

    Returns:
        The largest difference of pairs that are alike, over the largest value; how many they are; and how many things
        there are, the more of the two.
    """
    counts = [[len(tensor) for tensor in tensors] for tensors in (expected, found)]
    most = max([*counts[0], *counts[1], 0])
    if [t.shape[1:] for t in expected] != [t.shape[1:] for t in found] or any(len(set(own)) > 1 for own in counts):
        return 0.0, 0, max(most, 1)
    if not most or not min(counts[0][0], counts[1][0]):
        return 0.0, 0, most
    pairs = [(one.flatten(1), other.flatten(1)) for one, other in zip(_rows(expected), _rows(found), strict=True)]
    scales = [float(t.abs().max()) or 1.0 if t.is_floating_point() else 1.0 for t in expected]
    keys = [(one, other, scale) for (one, other), scale in zip(pairs, scales, strict=True) if one.shape[1] <= _KEY]
    distances = torch.zeros(counts[0][0], counts[1][0], dtype=torch.float64)
    for one, other, scale in keys:
        own = torch.cdist(one.double() / scale, other.double() / scale, p=float("inf"))
        distances = torch.maximum(distances, own)  # NaN stays
    places, others = _nearest_pairs(distances, tolerance)
    largest = torch.zeros(len(places), dtype=torch.float64)
    for (one, other), scale in zip(pairs, scales, strict=True):
        own = (one[places] - other[others]).abs().amax(1).double() / scale
        largest = torch.maximum(largest, own)
    alike = largest[largest <= tolerance]
    return float(alike.max()) if len(alike) else 0.0, len(alike), most


def _rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return outputs (n, 1 or more)."""
    return [tensor[:, None] if tensor.dim() == 1 else tensor for tensor in tensors]


def _nearest_pairs(distances: Tensor, tolerance: float) -> tuple[list[int], list[int]]:
    """Pair rows with columns that are near enough, the nearest first, each of them once.

    Args:
        distances: (n, m).
        tolerance: The largest distance of a pair.
    """
    near = (distances <= tolerance).nonzero()
    order = distances[near[:, 0], near[:, 1]].argsort(stable=True)
    rows: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in near[order].tolist():
        if row not in rows and column not in taken:
            rows[row] = column
            taken.add(column)
    return list(rows), list(rows.values())
