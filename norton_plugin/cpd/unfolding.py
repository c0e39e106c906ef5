"""From unfolded filters to what ALS works on, and back to factors of the filters."""

import functools

import torch
from torch import Tensor

from norton_plugin.cpd.factors import CPDFactors
from norton_plugin.cpd.scaling import unit_scale
from norton_plugin.cpd.sweep import cross_gram, khatri_rao, ridge_inverse, trace


def gram_of_filters(weight: Tensor) -> Tensor:
    """Form ``A'A`` of every unfolded filter, scaled to trace one.

    BLAS sums in an order that depends on where a matrix lies in memory, and ALS may blow a last digit up into
    another local minimum. So the entries are cut into a high and a low part short enough for exact sums (Ozaki,
    Ogita, Oishi, Rump, "Error-free transformations of matrix multiplication", Numerical Algorithms 59, 2012): what
    is left to rounding is far below the last digit, and the result does not depend on chunk, thread or device.

    Args:
        weight: Shape (n, C, Kh, Kw), finite; the kernel may have other axes.

    Returns:
        Shape (D, D, n), float64, D = Kh*Kw; zero for a zero filter.
    """
    unfolded = unit_scale(weight.flatten(2), dims=2)[0]
    bits = (53 - max(1, weight.shape[1] - 1).bit_length()) // 2
    high = torch.round(unfolded * 2.0**bits) * 2.0**-bits
    low = unfolded - high
    cross = high.transpose(1, 2) @ low
    gram = high.transpose(1, 2) @ high + (cross + cross.transpose(1, 2) + low.transpose(1, 2) @ low)
    gram = gram.permute(1, 2, 0).contiguous()
    energy = trace(gram)
    return gram / torch.where(energy > 0, energy, 1.0)


def attach_head(weight: Tensor, *kernel: Tensor, ridge: float) -> CPDFactors:
    """Solve for the head by least squares against the weight itself, and balance.

    Args:
        weight: Shape (n, C, Kh, Kw), scaled so that squares of its entries are in range.
        kernel: For each axis of the kernel (Kh, R, n).
        ridge: As in `norton_plugin.cpd.decompose_filters`.

    Returns:
        Float64 factors.
    """
    unfolded = weight.double().flatten(2)
    columns = khatri_rao(*kernel).permute(2, 0, 1)
    inverse = ridge_inverse(functools.reduce(torch.mul, map(cross_gram, kernel)), ridge=ridge).permute(2, 0, 1)
    solver = columns @ inverse
    head = unfolded @ solver
    # One step of iterative refinement takes the bias of the ridge out of the solution.
    head += (unfolded - head @ columns.transpose(1, 2)) @ solver
    return CPDFactors(head.transpose(1, 2), *(factor.permute(2, 1, 0) for factor in kernel)).balanced()
