"""Starting points of the ALS over clusters: one from the tensor itself, the others random.

Only head, vertical and horizontal are started; the first sweep solves for the mix. So a start does not depend on the
order of the filters.
"""

import torch
from torch import Tensor

from norton_plugin.cpd.coupled_sweep import Columns, unit_columns


def structured_start(tensor: Tensor, *, height: int, width: int, rank: int) -> Columns:
    """Start from the leading terms of an exact orthogonal decomposition.

    In the eigenbases of the kernel rows and columns, the tensor is Kh*Kw matrices of filters by channels. Their
    singular triplets are rank-one components that are orthogonal to each other; the R largest of all make the start.

    Args:
        tensor: Float64, shape (b, n, Kh*Kw, C).
        height: Kh.
        width: Kw.
        rank: R, at most Kh*Kw*min(n, C).

    Returns:
        Columns of norm one.
    """
    batch, filters, _, channels = tensor.shape
    cube = tensor.reshape(batch, filters, height, width, channels)
    rows = torch.linalg.eigh(torch.einsum("bnhwc,bnvwc->bhv", cube, cube))[1]
    columns = torch.linalg.eigh(torch.einsum("bnhwc,bnhvc->bwv", cube, cube))[1]
    slices = torch.einsum("bnhwc,bhp,bwq->bpqnc", cube, rows, columns).flatten(1, 2)
    values, vectors = _right_singular(slices)
    count = values.shape[2]
    chosen = values.flatten(1).topk(rank, dim=1)[1]
    head = vectors.flatten(1, 2).gather(1, chosen.unsqueeze(2).expand(-1, -1, channels)).mT
    place = (chosen // count).unsqueeze(1)
    vertical = rows.gather(2, (place // width).expand(-1, height, -1))
    horizontal = columns.gather(2, (place % width).expand(-1, width, -1))
    return Columns(head.contiguous(), vertical.contiguous(), horizontal.contiguous())


def _right_singular(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values (b, D, m) and right singular vectors (b, D, m, C) of (b, D, n, C), m = min(n, C)."""
    filters, channels = matrices.shape[2:]
    if channels <= filters:
        values, vectors = torch.linalg.eigh(matrices.mT @ matrices)
        return values, vectors.mT
    values, vectors = torch.linalg.eigh(matrices @ matrices.mT)
    right = vectors.mT @ matrices
    return values, right / torch.linalg.vector_norm(right, dim=3, keepdim=True).clamp_min(1e-30)


def random_starts(
    clusters: int, *, channels: int, height: int, width: int, rank: int, count: int, seed: int
) -> list[Columns]:
    """Draw all random starts of clusters of one layer and size at once, on the CPU, from a private generator.

    Args:
        clusters: How many clusters.
        channels: Length of the head, after compression.
        height: Kh.
        width: Kw.
        rank: R.
        count: Starts per cluster, >= 0.
        seed: Seed of the generator.

    Returns:
        One per start, float64, columns uniform on the unit sphere.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = []
    for _ in range(count):
        draws = torch.randn(clusters, channels + height + width, rank, dtype=torch.float64, generator=generator)
        starts.append(Columns(*map(unit_columns, draws.split([channels, height, width], dim=1))))
    return starts
