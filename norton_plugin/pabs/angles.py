"""Principal angles between the row spans of many factor matrices (docs/method.md, section 2)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from norton_plugin.errors import DecompositionError
from norton_plugin.pabs.smallest import smallest_singular_values

CPU_CHUNK_BYTES = 1 << 22  # measured fastest: long vectors, still near the cache
ACCELERATOR_CHUNK_BYTES = 1 << 28
SINE_FROM_COSINE = 0.99  # above this cosine arccos loses digits, so the residual (sine) form takes over


class Subspaces(NamedTuple):
    """Orthonormal bases of the row spans of N matrices.

    Attributes:
        basis: Float64 tensor (P, N, D), P the largest rank; the first `rank[n]` of `basis[:, n]` are orthonormal
            rows, the rest are zero.
        rank: Int64 tensor (N,) of numerical ranks, 0 for a zero matrix.
    """

    basis: Tensor
    rank: Tensor

    @property
    def informative(self) -> bool:
        """False when every non-zero matrix spans the whole space, so that all angles are zero."""
        return bool(((self.rank > 0) & (self.rank < self.basis.shape[2])).any())


def row_subspaces(factor: Tensor) -> Subspaces:
    """Orthonormal bases of the spans of the rows, one subspace per filter.

    Rows are scaled to unit length first: a span ignores the scale of its components, and so must its rank.

    Args:
        factor: Floating tensor (N, R, D): R components of dimension D for each of N filters; R > D is allowed.

    Returns:
        Bases and ranks. A direction counts when its singular value exceeds max(R, D) float64 roundings plus four
        roundings of the input's own type, relative to the largest.

    Raises:
        DecompositionError: The factor is not a finite floating (N, R, D) tensor with N, R, D >= 1.
    """
    check_factor(factor)
    rows = factor.detach().to(torch.float64, copy=True)
    # Two steps: the largest entry first, so that squaring neither overflows nor underflows.
    rows.div_(rows.abs().amax(2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny))
    rows.div_(torch.linalg.vector_norm(rows, dim=2, keepdim=True).clamp_min(1e-300))
    if rows.shape[1] == 1:
        return Subspaces(rows.transpose(0, 1).contiguous(), (rows[:, 0] != 0).any(1).long())
    q, triangle = torch.linalg.qr(rows.mT)
    u, values, _ = torch.linalg.svd(triangle, full_matrices=False)
    relative = max(rows.shape[1:]) * torch.finfo(torch.float64).eps + 4 * torch.finfo(factor.dtype).eps
    present = values > relative * values[:, :1]
    rank = present.sum(1)
    basis = q.mT if bool(present.all()) else (q @ u).mT * present.unsqueeze(2)
    return Subspaces(basis[:, : max(1, int(rank.max()))].transpose(0, 1).contiguous(), rank)


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Return all principal angles between the row spans of two matrices, largest first.

    Small angles come from the sine form, large ones from the cosine form (Knyazev and Argentati, SIAM J. Sci.
    Comput. 23 (2002), 2009-2041). `scipy.linalg.subspace_angles`, which takes columns, is the same up to 3e-8:
    it picks the form of one angle by the size of another, so some of its angles lose half their digits.

    Args:
        a: Floating tensor (Ra, D).
        b: Floating tensor (Rb, D).

    Returns:
        Float64 tensor (min(rank a, rank b),) of radians in [0, pi/2]; empty when a matrix is zero.

    Raises:
        DecompositionError: A matrix is not a finite floating 2-D tensor, or the dimensions D differ.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DecompositionError(
            f"principal_angles got shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (Ra, D) and (Rb, D) "
            "with the same D. Pass one factor matrix per filter, components as rows."
        )
    bases = []
    for matrix in (a, b):
        spans = row_subspaces(matrix.unsqueeze(0))
        bases.append(spans.basis[: int(spans.rank), 0])
    small, large = sorted(bases, key=len)
    if len(small) == 0:
        return small.new_zeros(0)
    cross = small @ large.mT
    cosines = torch.linalg.svdvals(cross).clamp(max=1.0).flip(0)  # both lists now follow the angles downwards
    sines = torch.linalg.svdvals(small - cross @ large).clamp(max=1.0)
    return torch.where(cosines**2 >= 0.5, torch.asin(sines), torch.acos(cosines))


def largest_angle_matrix(factor: Tensor, *, chunk_bytes: int | None = None) -> Tensor:
    """Return the largest principal angle between the row spans of every pair of filters.

    Its cosine is the smallest singular value of the product of the two bases (docs/method.md, section 2).
    Slow reference: `principal_angles(factor[i], factor[j]).max()` for each pair, or SciPy's `subspace_angles`.
    Spans of different dimension are compared as there: a span contained in the other is at angle zero. A zero
    filter has no direction; its angle to every filter is defined as zero.

    Args:
        factor: Floating tensor (N, R, D).
        chunk_bytes: Size of the working arrays beside the bases and the result, in bytes, to within a small
            factor; default 4 MiB on a CPU, 256 MiB on an accelerator.

    Returns:
        Float64 tensor (N, N) of radians in [0, pi/2], symmetric, its diagonal exactly zero. All zero when every
        span is the whole space (`row_subspaces(factor).informative` tells).

    Raises:
        DecompositionError: The factor is not a finite floating (N, R, D) tensor, or chunk_bytes is below one.
    """
    return angles_between(row_subspaces(factor), chunk_bytes=chunk_bytes)


def angles_between(spans: Subspaces, *, chunk_bytes: int | None = None) -> Tensor:
    """`largest_angle_matrix` for bases that are already there; same arguments, result and errors."""
    if chunk_bytes is None:
        chunk_bytes = CPU_CHUNK_BYTES if spans.basis.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    if chunk_bytes < 1:
        raise DecompositionError(f"chunk_bytes is {chunk_bytes}; expected at least one byte. Leave it out.")
    count = len(spans.rank)
    angles = spans.basis.new_zeros(count, count)
    if not spans.informative:
        return angles
    present = [int(rank) for rank in spans.rank.unique() if rank > 0]
    members = {rank: (spans.rank == rank).nonzero().squeeze(1) for rank in present}
    bases = {rank: spans.basis[:rank, members[rank]] for rank in present}
    for low in present:
        for high in (rank for rank in present if low <= rank < spans.basis.shape[2]):
            block = _angle_block(bases[low], bases[high], same=low == high, chunk_bytes=chunk_bytes)
            angles[members[low].unsqueeze(1), members[high]] = block
            if low != high:
                angles[members[high].unsqueeze(1), members[low]] = block.mT
    return angles


def _angle_block(small: Tensor, large: Tensor, *, same: bool, chunk_bytes: int) -> Tensor:
    """Angles (Ns, Nl) between bases (P, Ns, D) and (Q, Nl, D), P <= Q; `same`: one set, upper triangle mirrored."""
    p, rows, dim = small.shape
    q, columns, _ = large.shape
    block = small.new_zeros(rows, columns)
    side = max(1, math.isqrt(chunk_bytes // (8 * 2 * (p * q + 4))))
    strips = [strip.reshape(-1, dim) for strip in large.split(side, 1)]  # copied once, not at every row of tiles
    for top in range(0, rows, side):
        here = small[:, top : top + side]
        flat = here.reshape(-1, dim)
        for left in range(top if same else 0, columns, side):  # one set: only what meets the upper triangle
            cross = (flat @ strips[left // side].mT).view(p, here.shape[1], q, -1)
            cosine = smallest_singular_values(cross.transpose(1, 2).reshape(p, q, -1))
            block[top : top + side, left : left + side] = torch.acos(cosine.view(here.shape[1], -1).clamp_(max=1.0))
    near = block < math.acos(SINE_FROM_COSINE)
    if same:
        near = near.triu_(1)
    _refine_small(block, near, small, large, chunk_bytes=chunk_bytes)
    if same:
        block = block.triu_(1)
        block = block + block.mT
    return block


def _refine_small(angles: Tensor, near: Tensor, small: Tensor, large: Tensor, *, chunk_bytes: int) -> None:
    """Replace the angles marked in `near` by the sine form: largest singular value of the residual."""
    pairs = near.nonzero()
    p, _, dim = small.shape
    step = max(1, chunk_bytes // (8 * 3 * (p + large.shape[0]) * dim))
    for part in pairs.split(step):
        i, j = part.unbind(1)
        inner, outer = small[:, i].transpose(0, 1), large[:, j].transpose(0, 1)
        residual = inner - (inner @ outer.mT) @ outer
        gram = residual @ residual.mT  # squaring is harmless: only the largest singular value is wanted
        squared = gram[:, 0, 0] if p == 1 else torch.linalg.eigvalsh(gram)[:, -1]
        angles[i, j] = torch.asin(squared.clamp(0.0, 1.0).sqrt())


def check_factor(factor: Tensor) -> None:
    """Raise DecompositionError unless the factor is a finite, floating, non-empty tensor (N, R, D)."""
    if factor.ndim != 3 or 0 in factor.shape or not factor.is_floating_point():
        raise DecompositionError(
            f"a factor came with shape {tuple(factor.shape)} and type {factor.dtype}; expected a floating tensor "
            "(N, R, D) with at least one filter, component and entry. Reshape or convert it first."
        )
    if not all(math.isfinite(float(bound)) for bound in factor.detach().aminmax()):  # both are NaN where any entry is
        raise DecompositionError(
            f"a factor of shape {tuple(factor.shape)} holds NaN or infinite values; expected finite ones. "
            "Check the weights the factors were made from."
        )
