"""One ALS sweep over four modes for a batch of clusters: filters, channels, kernel rows and kernel columns.

The tensor is contracted twice per sweep: with head, vertical and horizontal for the mix, and with the mix alone; from
this product come the other three (a dimension tree; Phan, Tichavsky, Cichocki, "Fast alternating LS algorithms for high
order CANDECOMP/PARAFAC tensor factorizations", IEEE Trans. Signal Processing 61(19), 2013).

Columns have norm one, all but those of the factor solved for. So a ridge adds the same to the squared error in every
step: ``ridge * sum of the squared norms of the components``, the Lagrangian of error-preserving correction (Phan,
Tichavsky, Cichocki, "Error preserving correction: a method for CP decomposition at a target error bound", IEEE Trans.
Signal Processing 67(5), 2019).

Shapes: tensor (b, n, Kh*Kw, C); mix (b, n, R); head (b, C, R), vertical (b, Kh, R), horizontal (b, Kw, R).
"""

from typing import NamedTuple

import torch
from torch import Tensor

_TINY = 1e-30


class Columns(NamedTuple):
    """Head, vertical and horizontal factor of a batch of clusters, components as columns."""

    head: Tensor
    vertical: Tensor
    horizontal: Tensor


def unit_columns(factor: Tensor) -> Tensor:
    """Scale the columns of (b, a, R) to norm one; zero columns stay zero."""
    return factor / torch.linalg.vector_norm(factor, dim=1, keepdim=True).clamp_min(_TINY)


def khatri_rao(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Columnwise Kronecker product: (b, Kh, R) and (b, Kw, R) give (b, Kh*Kw, R)."""
    return (vertical.unsqueeze(2) * horizontal.unsqueeze(1)).flatten(1, 2)


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
    head, vertical, horizontal = columns
    kernel = khatri_rao(vertical, horizontal)
    target = tensor.flatten(2) @ (kernel.unsqueeze(2) * head.unsqueeze(1)).flatten(1, 2)
    gram = cross_gram(head) * cross_gram(vertical) * cross_gram(horizontal)
    mix = ridge_solve(gram, target, ridge=ridge)
    return mix, 1 - (mix * target).sum((1, 2))


def sweep(tensor: Tensor, columns: Columns, *, ridge: Tensor) -> tuple[Columns, Tensor]:
    """Update mix, head, vertical and horizontal once each, in this order.

    Args:
        tensor: Shape (b, n, D, C), norm one.
        columns: Of norm one.
        ridge: See `ridge_solve`.

    Returns:
        New columns of norm one, and the objective of the columns that came in (see `solve_mix`).
    """
    _, vertical, horizontal = columns
    batch, _, positions, channels = tensor.shape
    mix, objective = solve_mix(tensor, columns, ridge=ridge)
    mix = unit_columns(mix)
    product = (tensor.flatten(2).mT @ mix).view(batch, positions, channels, -1).unbind(1)
    mix_gram = cross_gram(mix)

    target = _weighted_sum(product, khatri_rao(vertical, horizontal))
    gram = mix_gram * cross_gram(vertical) * cross_gram(horizontal)
    head = unit_columns(ridge_solve(gram, target, ridge=ridge))
    kernel = torch.stack([(part * head).sum(1) for part in product], dim=1)
    kernel = kernel.view(batch, vertical.shape[1], horizontal.shape[1], -1)
    outer_gram = mix_gram * cross_gram(head)

    target = (kernel * horizontal.unsqueeze(1)).sum(2)
    vertical = unit_columns(ridge_solve(outer_gram * cross_gram(horizontal), target, ridge=ridge))
    target = (kernel * vertical.unsqueeze(2)).sum(1)
    horizontal = unit_columns(ridge_solve(outer_gram * cross_gram(vertical), target, ridge=ridge))
    return Columns(head, vertical, horizontal), objective


def _weighted_sum(parts: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """Sum (b, a, R) tensors, one per kernel position, each weighted by its row of (b, D, R)."""
    total = parts[0] * weights[:, :1]
    for index in range(1, len(parts)):
        total.addcmul_(parts[index], weights[:, index : index + 1])
    return total
