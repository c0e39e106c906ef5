"""Smallest singular values of very many small matrices at once.

LAPACK is called once per matrix, several microseconds for a 4 x 4. Written over whole arrays, and asking for nothing
but the smallest value, the same work costs a fraction of a microsecond.
"""

import torch
from torch import Tensor

MAX_STEPS = 100  # four are typical; a cluster of equal values near the smallest converges linearly, at worst at 0.3
STEPS_BEFORE_CHECK = 4
CONVERGED = 1e-14  # relative size of the last step on the squared value
BACK_OFF = 1e-7  # of the last step: more than rounding can have made it too long
NEGLIGIBLE = 1e-36  # squared; the entries are cosines, so this is far below rounding
PIVOT_FLOOR = 1e-60
TINY = 1e-300


def smallest_singular_values(matrices: Tensor) -> Tensor:
    """Return the smallest singular value of each matrix: bidiagonal form by reflections, then Laguerre's iteration.

    Slow reference: `torch.linalg.svdvals(matrices.movedim(2, 0))[:, -1]`.

    Args:
        matrices: Float64 tensor (P, Q, M), entries of size about one or less: matrix row, matrix column, batch. The
            batch lies innermost so that every step is a long contiguous vector operation. Overwritten.

    Returns:
        Tensor (M,) of values >= 0, absolute error a few float64 roundings.

    Source:
        Golub and Kahan, SIAM J. Numer. Anal. B 2 (1965), for the reflections; Parlett, "Laguerre's method applied to
        the matrix eigenvalue problem", Math. Comp. 18 (1964), for the iteration.
    """
    tall = matrices if len(matrices) >= matrices.shape[1] else matrices.transpose(0, 1)
    if tall.shape[1] == 1:
        return torch.linalg.vector_norm(tall[:, 0], dim=0)
    diagonal, above = _bidiagonalise(tall)
    return _smallest_of_bidiagonal(diagonal, above)


def _bidiagonalise(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Squares of the diagonal (P, M) and of the entries above it (P - 1, M) of the bidiagonal form; rows >= columns."""
    rows, columns, count = matrices.shape
    diagonal = matrices.new_empty(columns, count)
    above = matrices.new_empty(columns - 1, count)
    for k in range(columns):
        diagonal[k] = _reflect(matrices[k:, k], matrices[k:, k + 1 :])
        if k < columns - 1:
            row = matrices[k, k + 1 :]
            above[k] = _reflect(row, matrices[k + 1 :, k + 1 :].transpose(0, 1))
    return diagonal, above


def _reflect(vector: Tensor, rest: Tensor) -> Tensor:
    """Apply to `rest` (L, K, M), in place, the reflection that maps `vector` (L, M) to its first axis.

    Overwrites `vector`; returns its squared length (M,).
    """
    squared = (vector * vector).sum(0)
    if len(vector) == 1 or rest.shape[1] == 0:
        return squared
    length = squared.sqrt()
    first = vector[0]
    scale = torch.addcmul(squared, length, first.abs()).clamp_min_(TINY).reciprocal_()
    first.add_(torch.copysign(length, first))
    along = (vector.unsqueeze(1) * rest).sum(0).mul_(scale)
    rest.addcmul_(vector.unsqueeze(1), along, value=-1)
    return squared


def _smallest_of_bidiagonal(diagonal: Tensor, above: Tensor) -> Tensor:
    """Return the smallest singular values (M,) of bidiagonal matrices given by squared entries, (P, M) and (P - 1, M).

    Laguerre's iteration rises from zero to the smallest squared value and never passes it, but for rounding: where
    that happens (a pivot turns negative) it steps back a little and goes on at the finer scale.
    """
    diagonal = diagonal.clamp_min_(NEGLIGIBLE)
    product = diagonal[:-1] * above
    shift = torch.zeros_like(diagonal[0])
    move = torch.zeros_like(shift)
    result = torch.empty_like(shift)
    where = None
    for step in range(MAX_STEPS):
        forward, lowest = _laguerre_step(diagonal, above, product, shift)
        move = torch.where(lowest > PIVOT_FLOOR, forward, move.abs_().mul_(-BACK_OFF))
        shift += move
        if step < STEPS_BEFORE_CHECK - 1:
            continue
        still = (move.abs() > CONVERGED * shift).nonzero().squeeze(1)
        if where is None:
            result, where = shift, torch.arange(len(shift), device=shift.device)
        else:
            result[where] = shift
        if len(still) == 0:
            break
        where, shift, move = where[still], shift[still], move[still]
        diagonal, above, product = diagonal[:, still], above[:, still], product[:, still]
    return result.sqrt()


def _laguerre_step(diagonal: Tensor, above: Tensor, product: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (M,) from the shift towards the smallest eigenvalue of B^T B, and the lowest pivot (M,).

    A pivot at or below the floor means that the shift is already past the eigenvalue; the distance is then void.

    The pivots d_i of B^T B - shift come from the differential stationary qd recurrence (Dhillon and Parlett,
    2004), s_1 = -shift, d_i = s_i + q_i, s_{i+1} = s_i e_i / d_i - shift, which subtracts nothing but the shift.
    With its first two derivatives it gives the sums over the eigenvalues of 1 / (lambda - shift) and its square.
    """
    size = len(diagonal)
    value, slope, bend = -shift, None, None
    for i in range(size):
        inverse = (value + diagonal[i]).clamp_min_(PIVOT_FLOOR)
        if slope is None or bend is None:  # slope is -1, bend is 0
            lowest = inverse.clone()
            inverse.reciprocal_()
            first, second, ratio = inverse, inverse * inverse, -inverse
            sum_one, sum_two = first.clone(), second.clone()
        else:
            torch.minimum(lowest, inverse, out=lowest)
            ratio = slope * inverse.reciprocal_()
            sum_one -= ratio
            sum_two.addcmul_(ratio, ratio).addcmul_(bend, inverse, value=-1)
        if i == size - 1:
            break
        weight = product[i] * inverse * inverse
        if slope is None or bend is None:
            bend = (weight * ratio).mul_(2)
            slope = -1 - weight
        else:
            bend = torch.addcmul(bend, slope, ratio, value=-2).mul_(weight)
            slope = (weight * slope).sub_(1)
        value = (value * above[i]).mul_(inverse).sub_(shift)
    spread = sum_two.mul_(size).addcmul_(sum_one, sum_one, value=-1).clamp_min_(0).mul_(size - 1)
    return size / sum_one.add_(spread.sqrt_()), lowest
