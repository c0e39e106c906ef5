"""One ALS sweep over all modes for a batch of clusters: filters, channels, kernel rows and kernel columns.

Kernels may have more axes or one. The tensor is contracted twice per sweep: with all other factors for the mix, and
with the mix alone; from this product come the others (a dimension tree; Phan, Tichavsky, Cichocki, "Fast alternating
LS algorithms for high order CANDECOMP/PARAFAC tensor factorizations", IEEE Trans. Signal Processing 61(19), 2013).

Columns have norm one, all but those of the factor solved for. So a ridge adds the same to the squared error in every
step: ``ridge * sum of the squared norms of the components``, the Lagrangian of error-preserving correction (Phan,
Tichavsky, Cichocki, "Error preserving correction: a method for CP decomposition at a target error bound", IEEE Trans.
Signal Processing 67(5), 2019).

Shapes: tensor (b, n, Kh*Kw, C); mix (b, n, R); head (b, C, R), vertical (b, Kh, R), horizontal (b, Kw, R).
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from norton_plugin.cpd.factor_tuple import FactorTuple

_TINY = 1e-30


class Columns(FactorTuple):
    """Head and the factors of the kernel's axes of a batch of clusters, components as columns."""

    __slots__ = ()


def unit_columns(factor: Tensor) -> Tensor:
    """Scale the columns of (b, a, R) to norm one; zero columns stay zero."""
    return factor / torch.linalg.vector_norm(factor, dim=1, keepdim=True).clamp_min(_TINY)


def khatri_rao(*factors: Tensor) -> Tensor:
    """Columnwise Kronecker product: (b, Kh, R) and (b, Kw, R) give (b, Kh*Kw, R)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product.unsqueeze(2) * factor.unsqueeze(1)).flatten(1, 2)
    return product


def cross_gram(factor: Tensor) -> Tensor:
    """Gram matrices of the columns: (b, a, R) gives (b, R, R)."""
    return factor.mT @ factor


def ridge_solve(gram: Tensor, target: Tensor, *, ridge: Tensor) -> Tensor:
    """Solve ``X (gram + ridge) = target`` by Cholesky factorisation.

    Args:
        gram: Symmetric positive semidefinite with a diagonal of ones or zeros, (b, R, R); overwritten.
        target: Shape (b, a, R).
        ridge: Added to the diagonals, shape (b,); > 0.

    Returns:
        Shape (b, a, R); NaN for a matrix that is not positive definite in this precision.
    """
    gram.diagonal(dim1=1, dim2=2).add_(ridge.unsqueeze(1))
    factor, failed = torch.linalg.cholesky_ex(gram)
    solution = torch.cholesky_solve(target.mT, factor).mT
    return torch.where((failed > 0)[:, None, None], torch.nan, solution)


def solve_mix(tensor: Tensor, columns: Columns, *, ridge: Tensor) -> tuple[Tensor, Tensor]:
    """Solve for the mix and say what is left.

    Args:
        tensor: Shape (b, n, D, C), norm one.
        columns: Of norm one.
        ridge: See `ridge_solve`.

    Returns:
        The mix (b, n, R), and the squared error plus the ridge's share (b,).
    """
    kernel = khatri_rao(*columns.kernel)
    target = tensor.flatten(2) @ (kernel.unsqueeze(2) * columns.head.unsqueeze(1)).flatten(1, 2)
    gram = functools.reduce(torch.mul, map(cross_gram, columns))
    mix = ridge_solve(gram, target, ridge=ridge)
    return mix, 1 - (mix * target).sum((1, 2))


def sweep(tensor: Tensor, columns: Columns, *, ridge: Tensor) -> tuple[Columns, Tensor]:
    """Update mix, head and the factors of the kernel's axes once each, in this order.

    Args:
        tensor: Shape (b, n, D, C), norm one.
        columns: Of norm one.
        ridge: See `ridge_solve`.

    Returns:
        New columns of norm one, and the objective of the columns that came in (see `solve_mix`).
    """
    factors = list(columns.kernel)
    batch, _, positions, channels = tensor.shape
    mix, objective = solve_mix(tensor, columns, ridge=ridge)
    mix = unit_columns(mix)
    product = (tensor.flatten(2).mT @ mix).view(batch, positions, channels, -1).unbind(1)
    mix_gram = cross_gram(mix)

    target = _weighted_sum(product, khatri_rao(*factors))
    head = unit_columns(ridge_solve(_times_grams(mix_gram, factors), target, ridge=ridge))
    kernel = torch.stack([(part * head).sum(1) for part in product], dim=1)
    kernel = kernel.view(batch, *(factor.shape[1] for factor in factors), -1)
    outer_gram = mix_gram * cross_gram(head)

    for axis in range(len(factors)):
        target = kernel
        for other in reversed(range(len(factors))):  # the last axis first: those before it keep their places
            if other != axis:
                target = _summed_over(target, factors[other], axis=other)
        gram = _times_grams(outer_gram, [*factors[:axis], *factors[axis + 1 :]])
        factors[axis] = unit_columns(ridge_solve(gram, target, ridge=ridge))
    return Columns(head, *factors), objective


def _times_grams(gram: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply a Gram matrix (b, R, R) by those of factors; the result is a new one."""
    return functools.reduce(torch.mul, map(cross_gram, factors), gram) if factors else gram.clone()


def _summed_over(kernel: Tensor, factor: Tensor, *, axis: int) -> Tensor:
    """Sum (b, ..., R) over an axis of the kernel, each position weighted by its row of the factor (b, Kx, R)."""
    shape = [1] * kernel.dim()
    shape[0], shape[axis + 1], shape[-1] = len(factor), factor.shape[1], factor.shape[2]
    return (kernel * factor.reshape(shape)).sum(axis + 1)


def _weighted_sum(parts: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """Sum (b, a, R) tensors, one per kernel position, each weighted by its row of (b, D, R)."""
    total = parts[0] * weights[:, :1]
    for index in range(1, len(parts)):
        total.addcmul_(parts[index], weights[:, index : index + 1])
    return total
