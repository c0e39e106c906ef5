"""The factor tensors of a filter-wise CPD, shared by decomposition, pruning and CPDBlock."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from norton_plugin.cpd.factor_tuple import FactorTuple
from norton_plugin.cpd.filter_error import filter_nmse
from norton_plugin.cpd.scaling import root_of_power, times_power_of_two, unit_scale
from norton_plugin.errors import DecompositionError

# Of weights of 1-D, 2-D and 3-D convolutions.
WEIGHT_DIMENSIONS = (3, 4, 5)


class CPDFactors(FactorTuple):
    """Rank-R canonical polyadic factors of N filters of shape (C, Kh, Kw), or with another number of axes.

    Filter ``n`` is ``sum_r head[n, r] o vertical[n, r] o horizontal[n, r]`` with ``o`` the outer product
    (docs/method.md, section 1).

    Attributes:
        head: Input-channel factor, shape (N, R, C).
        depth: Factor of the first axis, shape (N, R, Kt); of 3-D kernels only.
        vertical: Kernel-row factor, shape (N, R, Kh); not of 1-D kernels.
        horizontal: Kernel-column factor, shape (N, R, Kw).
    """

    __slots__ = ()

    @property
    def rank(self) -> int:
        """Number of rank-one terms R per filter."""
        return int(self.head.shape[1])

    @property
    def num_filters(self) -> int:
        """Number of filters N."""
        return int(self.head.shape[0])

    def reconstruct(self) -> Tensor:
        """Sum the outer products.

        Returns:
            The weight the factors stand for, (N, C, Kh, Kw), in the dtype of the factors; differentiable.
        """
        n, rank, channels = self.head.shape
        weight = self.head.transpose(1, 2) @ outer_products(self.kernel).reshape(n, rank, -1)
        return weight.reshape(n, channels, *(factor.shape[2] for factor in self.kernel))

    def balanced(self) -> "CPDFactors":
        """Give the factors of every rank-one term the same Euclidean norm.

        The weight is unchanged up to rounding. Half precision needs this: no factor is near overflow or underflow
        while another is far from it. All factors of a term with a zero factor become zero.

        Returns:
            New factors, same shapes and dtype.
        """
        parts, exponents = zip(*(unit_scale(factor, dims=1) for factor in self), strict=True)
        norms = [torch.linalg.vector_norm(part, dim=2, keepdim=True) for part in parts]
        # The roots are multiplied, not the norms: the product of extreme norms may overflow.
        target = functools.reduce(torch.mul, (norm.pow(1 / len(self)) for norm in norms))
        power = root_of_power(sum(exponents[1:], exponents[0]), degree=len(self))
        scaled = [
            (part * torch.where(target > 0, target / norm, 0.0) * power).to(factor.dtype)
            for factor, part, norm in zip(self, parts, norms, strict=True)
        ]
        return CPDFactors(*scaled)

    def times_power_of_two(self, exponent: Tensor) -> "CPDFactors":
        """Multiply filters by powers of two, shared evenly among the factors.

        Args:
            exponent: Int64, one per filter, N in all.

        Returns:
            New factors, same shapes and dtype; balanced if these are.
        """
        power = root_of_power(exponent.reshape(-1, 1, 1), degree=len(self))
        return CPDFactors(*((factor.double() * power).to(factor.dtype) for factor in self))

    def nmse(self, weight: Tensor) -> Tensor:
        """Normalised squared error ``||W[n] - W^[n]||^2 / ||W[n]||^2`` of every filter.

        Args:
            weight: The weight approximated, shape (N, C, Kh, Kw).

        Returns:
            Shape (N,), float64, >= 0. A zero filter with zero factors has error 0; with others, infinity.

        Raises:
            DecompositionError: The weight has another shape than the factors stand for.
        """
        expected = (*self.head.shape[::2], *(factor.shape[2] for factor in self.kernel))
        factors = self.to(dtype=torch.float64)

        def rebuilt(exponent: Tensor) -> Tensor:
            return factors._replace(head=times_power_of_two(factors.head, -exponent.unsqueeze(2))).reconstruct()

        return filter_nmse(weight, expected, rebuilt)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "CPDFactors":
        """Cast and move all factors.

        Args:
            dtype: Floating dtype of the result; None keeps it.
            device: Device of the result; None keeps it.

        Returns:
            New factors, sharing memory where nothing changed.
        """
        return CPDFactors(*(factor.to(dtype=dtype or factor.dtype, device=device) for factor in self))


def outer_products(kernel: Sequence[Tensor]) -> Tensor:
    """Multiply the factors of a kernel's axes: (K, R, Kh) and (K, R, Kw) give (K, R, Kh, Kw)."""
    product = kernel[0]
    for factor in kernel[1:]:
        product = product.unsqueeze(-1) * factor.reshape(*factor.shape[:2], *(1,) * (product.dim() - 2), -1)
    return product


def exact_factors(weight: Tensor) -> CPDFactors:
    """Factor every filter without error at rank R = Kh*Kw, the product of the kernel's lengths.

    The head is the unfolded filter, one kernel position per term; the other factors are unit vectors that point at
    that position.

    Args:
        weight: Convolution weight, shape (N, C, Kh, Kw), or with one or three axes behind C; floating.

    Returns:
        Factors of rank Kh*Kw in the dtype of the weight. They are not balanced.

    Raises:
        DecompositionError: The weight has not three to five dimensions.
    """
    if weight.dim() not in WEIGHT_DIMENSIONS:
        raise DecompositionError(
            f"Expected a convolution weight (N, C, Kh, Kw), got shape {tuple(weight.shape)}; "
            "add the missing axes of length one."
        )
    n, lengths = len(weight), weight.shape[2:]
    places = torch.unravel_index(torch.arange(math.prod(lengths), device=weight.device), lengths)
    units = [
        torch.eye(length, dtype=weight.dtype, device=weight.device)[place].expand(n, -1, -1).contiguous()
        for length, place in zip(lengths, places, strict=True)
    ]
    return CPDFactors(weight.detach().flatten(2).transpose(1, 2).contiguous(), *units)
