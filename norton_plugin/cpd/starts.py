"""Starting points of the batched ALS: one from the filters themselves, the others random.

Only the vertical and horizontal factors are started; the first sweep solves for the head. The batch is the last
axis, as in `sweep`.
"""

import torch
from torch import Tensor

from norton_plugin.cpd.sweep import unit_columns


def structured_start(gram: Tensor, *, height: int, width: int, rank: int) -> tuple[Tensor, Tensor]:
    """Start from a two-step truncated HOSVD.

    The R leading right singular vectors of the unfolded filter (C, Kh*Kw) are the kernels that carry most of its
    energy; each, seen as a Kh x Kw matrix, is cut to rank one. For kernels with Kh = 1 or Kw = 1 nothing is cut:
    the start is the truncated SVD of the filter and already optimal.

    Args:
        gram: ``A'A`` of the unfolded filters, shape (Kh*Kw, Kh*Kw, n), float64.
        height: Kh.
        width: Kw.
        rank: R, from 1 to Kh*Kw.

    Returns:
        Vertical (Kh, R, n) and horizontal (Kw, R, n), columns of norm one.
    """
    vectors = torch.linalg.eigh(gram.permute(2, 0, 1))[1][:, :, -rank:].flip(2)
    kernels = vectors.transpose(1, 2).reshape(-1, height, width)
    left, _, right = torch.linalg.svd(kernels, full_matrices=False)
    vertical = left[:, :, 0].reshape(-1, rank, height).permute(2, 1, 0)
    horizontal = right[:, 0].reshape(-1, rank, width).permute(2, 1, 0)
    return _reproducible(vertical), _reproducible(horizontal)


def _reproducible(factor: Tensor) -> Tensor:
    """Round off the digits of LAPACK that depend on where a matrix lies in memory, hence on the chunk."""
    return unit_columns((factor.contiguous() * 2.0**20).round_())


def random_starts(filters: int, *, height: int, width: int, rank: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw all random starts of one layer at once, on the CPU, from a private generator.

    A start depends on the seed, N and the place of the filter in its layer, not on chunk, device or other layers.

    Args:
        filters: N of the layer.
        height: Kh.
        width: Kw.
        rank: R.
        count: Starts per filter, >= 0.
        seed: Seed of the generator.

    Returns:
        Vertical (Kh, R, count, N) and horizontal (Kw, R, count, N), float64, columns uniform on the unit sphere.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(height + width, rank, count, filters, dtype=torch.float64, generator=generator)
    return unit_columns(draws[:height]), unit_columns(draws[height:])
