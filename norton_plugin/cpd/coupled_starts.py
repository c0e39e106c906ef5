"""Starting points of the ALS over clusters: one from the tensor itself, the others random.

Only the head and the factors of the kernel's axes are started; the first sweep solves for the mix. So a start does not
depend on the order of the filters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from norton_plugin.cpd.coupled_sweep import Columns, unit_columns


def structured_start(tensor: Tensor, *, kernel_size: Sequence[int], rank: int) -> Columns:
    """Start from the leading terms of an exact orthogonal decomposition.

    In the eigenbases of the kernel's axes, the tensor is D matrices of filters by channels. Their singular triplets
    are rank-one components that are orthogonal to each other; the R largest of all make the start.

    Args:
        tensor: Floating, shape (b, n, D, C), D the product of the kernel's lengths.
        kernel_size: (Kh, Kw), or the lengths of another number of axes.
        rank: R, at most D*min(n, C).

    Returns:
        Columns of norm one.
    """
    batch, filters, _, channels = tensor.shape
    cube = tensor.reshape(batch, filters, *kernel_size, channels)
    axes, new = "dhw"[-len(kernel_size) :], "opq"[-len(kernel_size) :]
    bases = [
        torch.linalg.eigh(torch.einsum(f"bn{axes}c,bn{axes.replace(axis, 'v')}c->b{axis}v", cube, cube))[1]
        for axis in axes
    ]
    turned = ",".join(f"b{axis}{other}" for axis, other in zip(axes, new, strict=True))
    slices = torch.einsum(f"bn{axes}c,{turned}->b{new}nc", cube, *bases).flatten(1, len(kernel_size))
    values, vectors = _right_singular(slices)
    count = values.shape[2]
    chosen = values.flatten(1).topk(rank, dim=1)[1]
    head = vectors.flatten(1, 2).gather(1, chosen.unsqueeze(2).expand(-1, -1, channels)).mT
    places = torch.unravel_index(chosen // count, tuple(kernel_size))
    kernel = (
        basis.gather(2, place.unsqueeze(1).expand(-1, length, -1))
        for basis, place, length in zip(bases, places, kernel_size, strict=True)
    )
    return Columns(head.contiguous(), *(factor.contiguous() for factor in kernel))


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
    clusters: int, *, channels: int, kernel_size: Sequence[int], rank: int, count: int, seed: int
) -> list[Columns]:
    """Draw all random starts of clusters of one layer and size at once, on the CPU, from a private generator.

    Args:
        clusters: How many clusters.
        channels: Length of the head, after compression.
        kernel_size: (Kh, Kw), or the lengths of another number of axes.
        rank: R.
        count: Starts per cluster, >= 0.
        seed: Seed of the generator.

    Returns:
        One per start, float64, columns uniform on the unit sphere.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [channels, *kernel_size]
    starts = []
    for _ in range(count):
        draws = torch.randn(clusters, sum(lengths), rank, dtype=torch.float64, generator=generator)
        starts.append(Columns(*map(unit_columns, draws.split(lengths, dim=1))))
    return starts
