"""The two factor tensors of a spatial SVD: a vertical and a horizontal convolution (docs/method.md, section 1)."""

from typing import NamedTuple

import torch
from torch import Tensor

from norton_plugin.cpd.filter_error import filter_nmse
from norton_plugin.cpd.scaling import times_power_of_two


class SpatialFactors(NamedTuple):
    """Factors of N filters (C, Kh, Kw) in G channel groups, R components per group.

    Filter ``n`` of group ``g`` is ``W[n, c, h, w] = sum_r vertical[g R + r, c, h] * horizontal[n, r, w]``: a
    convolution C -> M with kernel Kh x 1, then one M -> N with kernel 1 x Kw, both in G groups
    (Jaderberg et al., arXiv:1405.3866, section 2.2).

    Attributes:
        vertical: Weight of the vertical convolution, shape (M, C, Kh), M = G * R.
        horizontal: Weight of the horizontal convolution, shape (N, R, Kw).
    """

    vertical: Tensor
    horizontal: Tensor

    @property
    def components(self) -> int:
        """Number of components M of all groups."""
        return int(self.vertical.shape[0])

    @property
    def rank(self) -> int:
        """Number of components R per group."""
        return int(self.horizontal.shape[1])

    @property
    def groups(self) -> int:
        """Number of channel groups G."""
        return self.components // self.rank

    @property
    def num_filters(self) -> int:
        """Number of filters N."""
        return int(self.horizontal.shape[0])

    def reconstruct(self) -> Tensor:
        """Multiply the two convolutions out.

        Returns:
            The weight the factors stand for, (N, C, Kh, Kw), in the dtype of the factors; differentiable.
        """
        groups, rank = self.groups, self.rank
        columns = self.vertical.reshape(groups, rank, -1)  # (G, R, C Kh)
        rows = self.horizontal.movedim(1, 2).reshape(groups, -1, rank)  # (G, n Kw, R)
        width, (_, channels, height) = self.horizontal.shape[2], self.vertical.shape
        return (rows @ columns).reshape(-1, width, channels, height).permute(0, 2, 3, 1)

    def nmse(self, weight: Tensor) -> Tensor:
        """Normalised squared error ``||W[n] - W^[n]||^2 / ||W[n]||^2`` of every filter.

        Args:
            weight: The weight approximated, shape (N, C, Kh, Kw).

        Returns:
            Shape (N,), float64, >= 0. A zero filter rebuilt as zero has error 0; otherwise infinity.

        Raises:
            DecompositionError: The weight has another shape than the factors stand for.
        """
        expected = (self.num_filters, *self.vertical.shape[1:], self.horizontal.shape[2])
        factors = self.to(dtype=torch.float64)

        def rebuilt(exponent: Tensor) -> Tensor:
            return factors._replace(
                horizontal=times_power_of_two(factors.horizontal, -exponent.unsqueeze(2))
            ).reconstruct()

        return filter_nmse(weight, expected, rebuilt)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "SpatialFactors":
        """Cast and move both factors.

        Args:
            dtype: Floating dtype of the result; None keeps it.
            device: Device of the result; None keeps it.

        Returns:
            New factors, sharing memory where nothing changed.
        """
        return SpatialFactors(*(factor.to(dtype=dtype or factor.dtype, device=device) for factor in self))
