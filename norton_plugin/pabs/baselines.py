"""The two other criteria of the paper's public code: variance-based distance and cosine similarity of angles."""

import torch
from torch import Tensor

from norton_plugin.pabs.distance import PairwiseDistance, flatten_filters, vector_distance


def vbd_distance(weight: Tensor) -> PairwiseDistance:
    """Variance-based distance of the filters taken as vectors.

    d(i, j) = var(w_i - w_j) / (var w_i + var w_j), docs/method.md, section 2. It ignores the means of the
    filters: 0 for filters equal up to a constant, 1 for uncorrelated ones, 2 for opposite ones. Two constant
    filters are at distance 0. Scale matters: d(w, a w) = (1 - a)^2 / (1 + a^2).

    Args:
        weight: Floating tensor (N, ...).

    Returns:
        Distances in [0, 2]; a zero filter is at distance 0 from every other one, to be removed first.

    Raises:
        DecompositionError: See `vector_distance`.
    """
    rows = flatten_filters(weight).to(torch.float64)
    rows = rows / rows.abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    centred = rows - rows.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    # A constant filter leaves rounding behind, which must not pass for variance.
    rounding = (rows.abs().amax(1) * rows.shape[1] * torch.finfo(torch.float64).eps).square()
    variance = torch.where(variance > rounding, variance, 0.0)
    scale = variance.unsqueeze(1) + variance
    covariance = centred @ centred.mT / rows.shape[1]
    matrix = torch.where(scale > 0, (scale - 2 * covariance) / scale.clamp_min(1e-300), 0.0)
    present = (rows != 0).any(1)
    matrix = ((matrix + matrix.mT) / 2).clamp_(0.0, 2.0) * (present.unsqueeze(1) & present)
    matrix.fill_diagonal_(0.0)
    if bool((matrix > 0).any()):
        return PairwiseDistance(matrix, "vbd", ("weight",))
    return PairwiseDistance(matrix, "vbd", (), ("weight: no two filters differ by more than a constant",))


def csa_distance(weight: Tensor, *, chunk_bytes: int | None = None) -> PairwiseDistance:
    """Cosine-squared similarity of the filters taken as vectors, turned into a distance.

    The similarity is cos^2 of the angle; the distance is 1 - cos^2 = sin^2, so that like the others it is 0 for
    filters on one line and largest, 1, for orthogonal ones. It orders pairs as `vector_distance` does but weighs
    them differently in the sums that decide which of a close pair goes.

    Args:
        weight: Floating tensor (N, ...).
        chunk_bytes: See `largest_angle_matrix`.

    Returns:
        Distances in [0, 1]; a zero filter is at distance 0 from every other one, to be removed first.

    Raises:
        DecompositionError: See `vector_distance`.
    """
    angle = vector_distance(weight, chunk_bytes=chunk_bytes)
    return PairwiseDistance(angle.matrix.sin().square(), "csa", angle.informative, angle.notes)
