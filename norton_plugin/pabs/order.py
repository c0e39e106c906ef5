"""From distances to decisions: the order in which filters are removed (docs/method.md, section 2)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from norton_plugin.errors import RecipeError
from norton_plugin.pabs.distance import PairwiseDistance, check_distance

TIE = 1e-12  # relative to the largest value: differences below it are rounding, not preference
POSITION_SHARE = 1e-3  # part of a score given to the position, so that float32 still tells 2000 filters apart
NEIGHBOURS_AT_A_TIME = 32

Array = NDArray[np.float64]


def removal_order(distance: PairwiseDistance | Tensor) -> Tensor:
    """Order in which filters are removed: the most redundant first.

    Takes the closest remaining pair, removes the one whose summed distance to the remaining filters is smaller,
    and repeats. Ties: among all filters that belong to an equally close pair the smallest sum goes; among equal
    sums the highest index goes, so the lower index is kept. Values within 1e-12 of the largest count as equal.

    Every row is sorted once and only ever read forward, and the sums are updated by subtraction: O(N^2 log N).

    Args:
        distance: Matrix (N, N), e.g. from `pabs_distance`.

    Returns:
        Int64 tensor (N,) on the CPU, a permutation; the last entry outlives all others.

    Raises:
        DecompositionError: The matrix is not square, symmetric, finite and non-negative.
    """
    order, _ = _remove_all(_as_array(distance))
    return torch.from_numpy(order)


def removal_scores(distance: PairwiseDistance | Tensor) -> Tensor:
    """Return the importance of each filter; sorting it ascending gives back exactly the removal order.

    The score is the distance of the closest pair at the moment of removal, as a share of the largest distance in
    the matrix. It never falls along the order, since removals only take pairs away; a thousandth of the range goes
    to the position in the order, so that equal distances stay apart, also in float32 up to several thousand filters.

    Args:
        distance: Matrix (N, N), e.g. from `pabs_distance`.

    Returns:
        Float64 tensor (N,) on the CPU, in [0, 1], all different.

    Raises:
        DecompositionError: The matrix is not square, symmetric, finite and non-negative.
    """
    matrix = _as_array(distance)
    order, gaps = _remove_all(matrix)
    largest = matrix.max()
    share = np.maximum.accumulate(gaps / largest) if largest > 0 else np.zeros_like(gaps)
    position = np.arange(len(order)) / max(1, len(order) - 1)
    scores = np.empty(len(order))
    scores[order] = (1 - POSITION_SHARE) * np.minimum(share, 1.0) + POSITION_SHARE * position
    return torch.from_numpy(scores)


def keep_indices(distance: PairwiseDistance | Tensor, keep: int) -> Tensor:
    """Return the filters that remain when all but `keep` have been removed in `removal_order`.

    Args:
        distance: Matrix (N, N), e.g. from `pabs_distance`.
        keep: How many filters stay, from 1 to N.

    Returns:
        Int64 tensor (keep,), ascending, on the CPU.

    Raises:
        RecipeError: `keep` is outside 1..N or not an integer.
        DecompositionError: The matrix is not square, symmetric, finite and non-negative.
    """
    matrix = _as_array(distance)
    if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= len(matrix):
        raise RecipeError(
            f"keep is {keep!r}; expected a whole number from 1 to {len(matrix)}, the filters of this layer. "
            "A ratio has to be multiplied by the number of filters first."
        )
    order, _ = _remove_all(matrix)
    return torch.from_numpy(np.sort(order[len(matrix) - keep :]))


def _as_array(distance: PairwiseDistance | Tensor) -> Array:
    return check_distance(distance).cpu().numpy()


def _remove_all(matrix: Array) -> tuple[NDArray[np.int64], Array]:
    """Return the order (N,) and the closest distance at each removal (N,); the last filter repeats the one before."""
    count = len(matrix)
    tie = TIE * matrix.max()
    neighbours = _sorted_neighbours(matrix)
    cursor = np.zeros(count, dtype=np.int64)
    alive = np.ones(count + 1, dtype=bool)  # the extra one ends each row
    sums = matrix.sum(1) - matrix.diagonal()
    tie_of_sums = TIE * sums.max()
    nearest = neighbours[:, 0].astype(np.int64)
    gap = np.full(count, np.inf)
    if count > 1:
        gap = matrix[np.arange(count), nearest].copy()
    order = np.empty(count, dtype=np.int64)
    gaps = np.zeros(count)
    for step in range(count - 1):
        closest = gap.min()
        candidates = np.flatnonzero(gap <= closest + tie)
        candidate_sums = sums[candidates]
        removed = candidates[candidate_sums <= candidate_sums.min() + tie_of_sums][-1]
        order[step], gaps[step] = removed, closest
        alive[removed] = False
        gap[removed] = np.inf
        sums -= matrix[removed]
        orphans = np.flatnonzero((nearest == removed) & alive[:count])
        if len(orphans) and step < count - 2:
            _advance(cursor, orphans, neighbours, alive)
            nearest[orphans] = neighbours[orphans, cursor[orphans]]
            gap[orphans] = matrix[orphans, nearest[orphans]]
    order[-1] = np.flatnonzero(alive[:count])[0]
    gaps[-1] = gaps[-2] if count > 1 else 0.0
    return order, gaps


def _sorted_neighbours(matrix: Array) -> NDArray[Any]:
    """Each filter's other filters, nearest first, ended by the sentinel N: integer array (N, N)."""
    count = len(matrix)
    others = matrix.copy()
    np.fill_diagonal(others, np.inf)
    neighbours = np.argsort(others, axis=1).astype(np.int32)
    neighbours[:, -1] = count
    return neighbours


def _advance(
    cursor: NDArray[np.int64], rows: NDArray[np.int64], neighbours: NDArray[Any], alive: NDArray[np.bool_]
) -> None:
    """Move the cursors of the rows forward to the nearest neighbour still alive (there is one)."""
    width = neighbours.shape[1]
    while len(rows):
        window = np.minimum(cursor[rows, None] + np.arange(NEIGHBOURS_AT_A_TIME), width - 1)
        living = alive[neighbours[rows[:, None], window]]
        first = living.argmax(1)
        found = living[np.arange(len(rows)), first]
        cursor[rows] = np.where(found, window[np.arange(len(rows)), first], window[:, -1])
        rows = rows[~found]
