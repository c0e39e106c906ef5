"""Starting points of the batched ALS: one from the filters themselves, the others random.

Only the factors of the kernel's axes are started; the first sweep solves for the head. The batch is the last
axis, as in `sweep`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from norton_plugin.cpd.sweep import unit_columns


def structured_start(gram: Tensor, *, kernel_size: Sequence[int], rank: int) -> tuple[Tensor, ...]:
    """Start from a two-step truncated HOSVD.

    The R leading right singular vectors of the unfolded filter (C, Kh*Kw) are the kernels that carry most of its
    energy; each is cut to rank one. For kernels of one axis (all others of length one) nothing is cut: the start is
    the truncated SVD of the filter and already optimal.

    Args:
        gram: ``A'A`` of the unfolded filters, shape (D, D, n), float64, D the product of the kernel's lengths.
        kernel_size: (Kh, Kw), or the lengths of another number of axes.
        rank: R, from 1 to D.

    Returns:
        For each axis of the kernel (Kh, R, n), columns of norm one.
    """
    vectors = torch.linalg.eigh(gram.permute(2, 0, 1))[1][:, :, -rank:].flip(2)
    rest = vectors.transpose(1, 2)
    found = []
    for length in kernel_size[:-1]:  # the best vector of this axis; what it leaves is cut on
        left, _, right = torch.linalg.svd(rest.reshape(-1, length, rest.shape[-1] // length), full_matrices=False)
        found.append(left[:, :, 0].reshape(-1, rank, length))
        rest = right[:, 0]
    found.append(rest.reshape(-1, rank, kernel_size[-1]))
    return tuple(_reproducible(factor.permute(2, 1, 0)) for factor in found)


def _reproducible(factor: Tensor) -> Tensor:
    """Round off the digits of LAPACK that depend on where a matrix lies in memory, hence on the chunk."""
    return unit_columns((factor.contiguous() * 2.0**20).round_())


def random_starts(filters: int, *, kernel_size: Sequence[int], rank: int, count: int, seed: int) -> tuple[Tensor, ...]:
    """Draw all random starts of one layer at once, on the CPU, from a private generator.

    A start depends on the seed, N and the place of the filter in its layer, not on chunk, device or other layers.

    Args:
        filters: N of the layer.
        kernel_size: (Kh, Kw), or the lengths of another number of axes.
        rank: R.
        count: Starts per filter, >= 0.
        seed: Seed of the generator.

    Returns:
        For each axis of the kernel (Kh, R, count, N), float64, columns uniform on the unit sphere.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(sum(kernel_size), rank, count, filters, dtype=torch.float64, generator=generator)
    return tuple(map(unit_columns, draws.split(list(kernel_size))))
