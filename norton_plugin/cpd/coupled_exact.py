"""Clusters that need no iterations: at full rank, and without a spatial kernel."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from norton_plugin.cpd.factor_tuple import FactorTuple
from norton_plugin.errors import DecompositionError


class ClusterTerms(FactorTuple):
    """Components of b clusters of equal size.

    Attributes:
        head: Shape (b, R, C).
        kernel: For each axis of the kernel (b, R, Kh).
        mix: Shape (b, n, R).
    """

    __slots__ = ()
    last = ("mix",)

    @property
    def mix(self) -> Tensor:
        """How filters are made of components."""
        return self[-1]


def full_components(filters: int, channels: int, kernel_size: Sequence[int]) -> int:
    """Return how many components make one cluster exact: the product of all lengths over the largest.

    Args:
        filters: Filters n of the cluster.
        channels: Input channels C of the convolution (per group).
        kernel_size: (Kh, Kw), or the lengths of another number of axes.

    Returns:
        The number of components of the exact construction; no more are ever needed.

    Raises:
        DecompositionError: A length is below one.
    """
    lengths = (filters, channels, *kernel_size)
    if min(lengths) < 1:
        raise DecompositionError(
            f"full_components got filters {filters}, channels {channels} and kernel {tuple(kernel_size)}; "
            "every length must be at least one."
        )
    return math.prod(lengths) // max(lengths)


def exact_terms(weight: Tensor) -> ClusterTerms:
    """Factor clusters without error: the fibres along the longest axis, and unit vectors along the others.

    Args:
        weight: Float64, shape (b, n, C, Kh, Kw).

    Returns:
        `full_components` components per cluster.
    """
    lengths = weight.shape[1:]
    longest = lengths.index(max(lengths))
    others = [axis for axis in range(len(lengths)) if axis != longest]
    fibres = weight.movedim(longest + 1, -1).flatten(1, -2)
    places = torch.unravel_index(
        torch.arange(fibres.shape[1], device=weight.device), [lengths[axis] for axis in others]
    )
    factors = {longest: fibres}
    for axis, place in zip(others, places, strict=True):
        unit = torch.eye(lengths[axis], dtype=weight.dtype, device=weight.device)[place]
        factors[axis] = unit.expand(len(weight), -1, -1)
    return ClusterTerms(*(factors[axis] for axis in range(1, len(lengths))), factors[0].mT)


def truncated_svd(weight: Tensor, rank: int, *, metric: Tensor | None = None) -> ClusterTerms:
    """Give the best approximation of rank R to filters without a spatial kernel.

    Under a metric S the error ``trace((W - W^) S (W - W^)')`` is the smallest: with ``W S^(1/2) = U s V'`` the mix is
    ``W S^(1/2) V`` and the head ``V' S^(-1/2)``.

    Args:
        weight: Float64, shape (b, n, C, 1, 1).
        rank: R, from 1 to min(n, C).
        metric: Second moment of the inputs, (C, C), symmetric positive semidefinite, float64; None for the identity.

    Returns:
        R components per cluster, the largest first.
    """
    matrix = weight.flatten(2)
    inverse = None
    if metric is not None:
        root, inverse = _roots(metric)
        matrix = matrix @ root
    right = torch.linalg.svd(matrix, full_matrices=False)[2][:, :rank]
    # Not U s: so a zero filter gets a mix of exactly zero.
    mix = matrix @ right.mT
    head = right if inverse is None else right @ inverse
    ones = head.new_ones(len(head), rank, 1)
    return ClusterTerms(head, *(ones.clone() for _ in weight.shape[3:]), mix)


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp_min(0).sqrt()
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps ** 0.5
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return (vectors * values) @ vectors.mT, (vectors * inverse) @ vectors.mT
