"""One ALS sweep for a batch of filters, in Gram form and with the batch as the last axis.

With the unfolding ``A`` (C, D) of a filter, ``D = Kh*Kw``, and ``K`` (D, R) the Khatri-Rao product of the vertical
and horizontal factors, the best head is ``A K (K'K)^-1``. The other two updates see the head only through
``G = A'A`` (docs/method.md, section 1): with ``P = G K (K'K)^-1`` (D, R),

    head' head        = (K'K)^-1 K' P
    MTTKRP, vertical  = sum_j P[(i, j), r] horizontal[j, r]
    MTTKRP, horizontal = sum_i P[(i, j), r] vertical[i, r]

so a sweep never touches C. Matrices this small drown in the call overhead of batched BLAS and LAPACK; with the batch
as the last, contiguous axis every step is a long elementwise operation.

Shapes: G (D, D, ...), vertical (Kh, R, ...), horizontal (Kw, R, ...), all float64; ``...`` are batch axes.
"""

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


def khatri_rao(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Columnwise Kronecker product: (Kh, R, ...) and (Kw, R, ...) give (Kh*Kw, R, ...)."""
    return (vertical[:, None] * horizontal[None]).flatten(0, 1)


def project(gram: Tensor, vertical: Tensor, horizontal: Tensor, *, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for the head and say how much of the filter it explains.

    Args:
        gram: ``A'A``, shape (D, D, ...), trace one.
        vertical: Shape (Kh, R, ...).
        horizontal: Shape (Kw, R, ...).
        ridge: See `ridge_inverse`.

    Returns:
        ``P`` of shape (D, R, ...), the Gram matrix of the head (R, R, ...), and the explained share of the
        squared norm, shape (...), which is one minus the NMSE.
    """
    kernel = khatri_rao(vertical, horizontal)
    inverse = ridge_inverse(cross_gram(vertical) * cross_gram(horizontal), ridge=ridge)
    product = contract(contract(gram, kernel), inverse)
    inner = contract(kernel.transpose(0, 1), product)
    return product, contract(inverse, inner), trace(inner)


def sweep(gram: Tensor, vertical: Tensor, horizontal: Tensor, *, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Update head, vertical and horizontal once each, in this order.

    Args:
        gram: ``A'A``, shape (D, D, ...), trace one.
        vertical: Shape (Kh, R, ...).
        horizontal: Shape (Kw, R, ...).
        ridge: See `ridge_inverse`.

    Returns:
        New vertical and horizontal with columns of norm one, and the share of the squared norm explained by
        the factors that came in, shape (...).
    """
    height, width = vertical.shape[0], horizontal.shape[0]
    product, head_gram, explained = project(gram, vertical, horizontal, ridge=ridge)
    product = product.unflatten(0, (height, width))
    target = product[:, 0] * horizontal[0]
    for column in range(1, width):
        target.addcmul_(product[:, column], horizontal[column].expand_as(target))
    vertical = unit_columns(contract(target, ridge_inverse(head_gram * cross_gram(horizontal), ridge=ridge)))
    target = product[0] * vertical[0]
    for row in range(1, height):
        target.addcmul_(product[row], vertical[row].expand_as(target))
    horizontal = unit_columns(contract(target, ridge_inverse(head_gram * cross_gram(vertical), ridge=ridge)))
    return vertical, horizontal, explained
