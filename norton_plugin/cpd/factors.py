"""The three factor tensors of a filter-wise CPD, shared by decomposition, pruning and CPDBlock."""

from typing import NamedTuple

import torch
from torch import Tensor

from norton_plugin.cpd.filter_error import filter_nmse
from norton_plugin.cpd.scaling import cube_root_of_power, times_power_of_two, unit_scale
from norton_plugin.errors import DecompositionError


class CPDFactors(NamedTuple):
    """Rank-R canonical polyadic factors of N filters of shape (C, Kh, Kw).

    Filter ``n`` is ``sum_r head[n, r] o vertical[n, r] o horizontal[n, r]`` with ``o`` the outer product
    (docs/method.md, section 1).

    Attributes:
        head: Input-channel factor, shape (N, R, C).
        vertical: Kernel-row factor, shape (N, R, Kh).
        horizontal: Kernel-column factor, shape (N, R, Kw).
    """

    head: Tensor
    vertical: Tensor
    horizontal: Tensor

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
        kernel = self.vertical.unsqueeze(3) * self.horizontal.unsqueeze(2)
        weight = self.head.transpose(1, 2) @ kernel.reshape(n, rank, -1)
        return weight.reshape(n, channels, self.vertical.shape[2], self.horizontal.shape[2])

    def balanced(self) -> "CPDFactors":
        """Give the three factors of every rank-one term the same Euclidean norm.

        The weight is unchanged up to rounding. Half precision needs this: no factor is near overflow or underflow
        while another is far from it. A term with a zero factor becomes three zero factors.

        Returns:
            New factors, same shapes and dtype.
        """
        parts, exponents = zip(*(unit_scale(factor, dims=1) for factor in self), strict=True)
        norms = [torch.linalg.vector_norm(part, dim=2, keepdim=True) for part in parts]
        # The cube roots are multiplied, not the norms: the product of three extreme norms may overflow.
        target = norms[0].pow(1 / 3) * norms[1].pow(1 / 3) * norms[2].pow(1 / 3)
        power = cube_root_of_power(exponents[0] + exponents[1] + exponents[2])
        scaled = [
            (part * torch.where(target > 0, target / norm, 0.0) * power).to(factor.dtype)
            for factor, part, norm in zip(self, parts, norms, strict=True)
        ]
        return CPDFactors(*scaled)

    def times_power_of_two(self, exponent: Tensor) -> "CPDFactors":
        """Multiply filters by powers of two, shared evenly among the three factors.

        Args:
            exponent: Int64, one per filter, N in all.

        Returns:
            New factors, same shapes and dtype; balanced if these are.
        """
        power = cube_root_of_power(exponent.reshape(-1, 1, 1))
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
        expected = (*self.head.shape[::2], self.vertical.shape[2], self.horizontal.shape[2])
        factors = self.to(dtype=torch.float64)

        def rebuilt(exponent: Tensor) -> Tensor:
            return factors._replace(head=times_power_of_two(factors.head, -exponent.unsqueeze(2))).reconstruct()

        return filter_nmse(weight, expected, rebuilt)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "CPDFactors":
        """Cast and move all three factors.

        Args:
            dtype: Floating dtype of the result; None keeps it.
            device: Device of the result; None keeps it.

        Returns:
            New factors, sharing memory where nothing changed.
        """
        return CPDFactors(*(factor.to(dtype=dtype or factor.dtype, device=device) for factor in self))


def exact_factors(weight: Tensor) -> CPDFactors:
    """Factor every filter without error at rank R = Kh*Kw.

    The head is the unfolded filter, one kernel position per term; the other two factors are unit vectors that
    point at that position.

    Args:
        weight: Convolution weight, shape (N, C, Kh, Kw), floating.

    Returns:
        Factors of rank Kh*Kw in the dtype of the weight. They are not balanced.

    Raises:
        DecompositionError: The weight has not four dimensions.
    """
    if weight.dim() != 4:
        raise DecompositionError(
            f"Expected a convolution weight (N, C, Kh, Kw), got shape {tuple(weight.shape)}; "
            "add the missing axes of length one."
        )
    n, _, height, width = weight.shape
    vertical = torch.eye(height, dtype=weight.dtype, device=weight.device).repeat_interleave(width, dim=0)
    horizontal = torch.eye(width, dtype=weight.dtype, device=weight.device).repeat(height, 1)
    return CPDFactors(
        weight.detach().flatten(2).transpose(1, 2).contiguous(),
        vertical.expand(n, -1, -1).contiguous(),
        horizontal.expand(n, -1, -1).contiguous(),
    )
