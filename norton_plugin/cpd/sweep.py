"""One ALS sweep for a batch of filters, in Gram form and with the batch as the last axis.

With the unfolding ``A`` (C, D) of a filter, ``D = Kh*Kw``, and ``K`` (D, R) the Khatri-Rao product of the vertical
and horizontal factors, the best head is ``A K (K'K)^-1``. The other two updates see the head only through
``G = A'A`` (docs/method.md, section 1): with ``P = G K (K'K)^-1`` (D, R),

    head' head        = (K'K)^-1 K' P
    MTTKRP, vertical  = sum_j P[(i, j), r] horizontal[j, r]
    MTTKRP, horizontal = sum_i P[(i, j), r] vertical[i, r]

and so on for kernels of more axes or of one. So a sweep never touches C. Matrices this small drown in the call overhead
of batched BLAS and LAPACK; with the batch as the last, contiguous axis every step is a long elementwise operation.

Shapes: G (D, D, ...), vertical (Kh, R, ...), horizontal (Kw, R, ...), all float64; ``...`` are batch axes.
"""

import functools

import torch
from torch import Tensor

_TINY = 1e-30


def contract(left: Tensor, right: Tensor) -> Tensor:
    """Multiply small matrices, batch last: (a, b, ...) times (b, c, ...) gives (a, c, ...)."""
    result = left[:, 0, None] * right[None, 0]
    for index in range(1, right.shape[0]):
        result.addcmul_(left[:, index, None], right[None, index])
    return result


def cross_gram(factor: Tensor) -> Tensor:
    """Gram matrices of the columns, batch last: (a, R, ...) gives (R, R, ...)."""
    return contract(factor.transpose(0, 1), factor)


def trace(matrix: Tensor) -> Tensor:
    """Traces of square matrices, batch last: (a, a, ...) gives (...)."""
    total = matrix[0, 0].clone()
    for index in range(1, matrix.shape[0]):
        total += matrix[index, index]
    return total


def ridge_inverse(gram: Tensor, *, ridge: float) -> Tensor:
    """Invert symmetric positive semidefinite matrices, batch last, by Gauss-Jordan elimination.

    Args:
        gram: Shape (R, R, ...); overwritten.
        ridge: Added to the diagonal, relative to its mean; > 0.

    Returns:
        Inverses, shape (R, R, ...).
    """
    rank = gram.shape[0]
    offset = trace(gram).mul_(ridge / rank).add_(_TINY)
    for index in range(rank):
        gram[index, index] += offset
    for pivot in range(rank):
        scale = gram[pivot, pivot].reciprocal()
        row = gram[pivot] * scale
        column = gram[:, pivot].clone()
        gram.addcmul_(column[:, None], row[None], value=-1)
        gram[pivot] = row
        gram[:, pivot] = column * -scale
        gram[pivot, pivot] = scale
    return gram


def unit_columns(factor: Tensor) -> Tensor:
    """Scale the columns of (a, R, ...) to norm one; zero columns stay zero."""
    energy = factor[0].square()
    for row in factor[1:]:
        energy.addcmul_(row, row)
    return factor * energy.clamp_min_(_TINY).rsqrt_()


def khatri_rao(*factors: Tensor) -> Tensor:
    """Columnwise Kronecker product: (Kh, R, ...) and (Kw, R, ...) give (Kh*Kw, R, ...)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None] * factor[None]).flatten(0, 1)
    return product


def project(gram: Tensor, *kernel: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for the head and say how much of the filter it explains.

    Args:
        gram: ``A'A``, shape (D, D, ...), trace one.
        kernel: Factors of the kernel's axes, (Kh, R, ...) and (Kw, R, ...) of a 2-D one.
        ridge: See `ridge_inverse`.

    Returns:
        ``P`` of shape (D, R, ...), the Gram matrix of the head (R, R, ...), and the explained share of the
        squared norm, shape (...), which is one minus the NMSE.
    """
    columns = khatri_rao(*kernel)
    inverse = ridge_inverse(functools.reduce(torch.mul, map(cross_gram, kernel)), ridge=ridge)
    product = contract(contract(gram, columns), inverse)
    inner = contract(columns.transpose(0, 1), product)
    return product, contract(inverse, inner), trace(inner)


def sweep(gram: Tensor, *kernel: Tensor, ridge: float) -> tuple[Tensor, ...]:
    """Update the head and the factors of the kernel's axes once each, in this order.

    Args:
        gram: ``A'A``, shape (D, D, ...), trace one.
        kernel: Factors of the kernel's axes, (Kh, R, ...) and (Kw, R, ...) of a 2-D one.
        ridge: See `ridge_inverse`.

    Returns:
        New factors of the axes with columns of norm one, and the share of the squared norm explained by the factors
        that came in, shape (...).
    """
    product, head_gram, explained = project(gram, *kernel, ridge=ridge)
    product = product.unflatten(0, [len(factor) for factor in kernel])
    found = list(kernel)
    for axis in range(len(found)):
        target, gram_of_others = product, head_gram
        for other in reversed(range(len(found))):  # the last axis first: those before it keep their places
            if other != axis:
                target = _weighted_sum(target, found[other], axis=other)
        for factor in (*found[:axis], *found[axis + 1 :]):
            gram_of_others = gram_of_others * cross_gram(factor)
        found[axis] = unit_columns(contract(target, ridge_inverse(gram_of_others, ridge=ridge)))
    return *found, explained


def _weighted_sum(product: Tensor, factor: Tensor, *, axis: int) -> Tensor:
    """Sum over an axis of the kernel, each position weighted by its row of the factor (Kx, R, ...)."""
    parts = product.unbind(axis)
    total = parts[0] * factor[0]
    for part, row in zip(parts[1:], factor[1:], strict=True):
        total.addcmul_(part, row.expand_as(total))
    return total
