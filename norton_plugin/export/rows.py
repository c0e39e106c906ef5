"""Things found, such as boxes, compared in whatever order two runtimes return them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_KEY = 16  # numbers of one thing, of an output by which things are told apart: of a box, not of a mask
_FAR = 1e9


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
    scales = [float(t.abs().max()) if t.is_floating_point() else 1.0 for t in expected]
    rows = [
        [t.reshape(len(t), -1).double() / (scale or 1.0) for t, scale in zip(tensors, scales, strict=True)]
        for tensors in (expected, found)
    ]
    keys = [torch.cat([t for t in own if t.shape[1] <= _KEY] or own, 1) for own in rows]
    one, other = _nearest_pairs(torch.cdist(keys[0], keys[1], p=float("inf")).nan_to_num(_FAR, _FAR))
    differences = (torch.cat(rows[0], 1)[one] - torch.cat(rows[1], 1)[other]).abs().amax(1)
    alike = differences[differences <= tolerance]
    return float(alike.max()) if len(alike) else 0.0, len(alike), most


def _nearest_pairs(distances: Tensor) -> tuple[list[int], list[int]]:
    """Pair rows with columns, the nearest first, each of them once.

    Args:
        distances: (n, m), finite; overwritten.
    """
    pairs = []
    for _ in range(min(distances.shape)):
        row, column = divmod(int(distances.argmin()), distances.shape[1])
        pairs.append((row, column))
        distances[row], distances[:, column] = torch.inf, torch.inf
    return [row for row, _ in pairs], [column for _, column in pairs]
