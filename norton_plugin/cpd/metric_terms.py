"""Components of clusters as one linear map per factor, for fits in the metric of the outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from norton_plugin.cpd.factors import outer_products

HEAD = 0  # place of the head among the factors; the axes of the kernel follow


@dataclass(frozen=True)
class Terms:
    """Components of K clusters, and the filters that mix them, at places of their clusters.

    Attributes:
        factors: The head (K, R, C), and for each axis of the kernel (K, R, Kh), float64.
        mix: (K, S, R), zero at places without a filter.
    """

    factors: tuple[Tensor, ...]
    mix: Tensor

    @property
    def head(self) -> Tensor:
        """The factor of the channels."""
        return self.factors[HEAD]

    def kernels(self) -> Tensor:
        """Return the spatial kernels, (K, R, Kh * Kw)."""
        return outer_products(self.factors[1:]).flatten(2)

    def basis(self) -> Tensor:
        """Return the components, (K, R, D)."""
        return (self.head[..., None] * self.kernels()[..., None, :]).flatten(2)

    def weight(self) -> Tensor:
        """Return the filters at their places, (K, S, D)."""
        return self.mix @ self.basis()

    def with_factor(self, place: int, value: Tensor) -> Terms:
        """Return the components with another factor."""
        return replace(self, factors=(*self.factors[:place], value, *self.factors[place + 1 :]))

    def transposed(self, place: int, rows: Tensor) -> Tensor:
        """Apply the transpose of the map from one factor to the weight.

        Args:
            place: Of the factor; the weight is linear in it.
            rows: Like the weight, (K, S, D).

        Returns:
            In the shape of the factor.
        """
        parts = (self.mix.mT @ rows).unflatten(2, (self.head.shape[2], -1))  # (K, R, C, Kh Kw)
        if place == HEAD:
            return (parts @ self.kernels()[..., None]).squeeze(3)
        kernel = (self.head[..., None, :] @ parts).squeeze(2)
        kernel = kernel.unflatten(2, [factor.shape[2] for factor in self.factors[1:]])
        for other in reversed(range(1, len(self.factors))):  # the last axis first: those before it keep their places
            if other != place:
                kernel = _summed_over(kernel, self.factors[other], axis=other + 1)
        return kernel

    def gram(self, place: int, spatial: Tensor) -> Tensor:
        """Return how components overlap, (K, R, R), one factor left out, for inputs whose channels are white.

        Args:
            place: Of the factor left out.
            spatial: Second moments of kernel positions, (Kh * Kw, Kh * Kw).
        """
        gram = self.mix.mT @ self.mix
        if place == HEAD:
            kernels = self.kernels()
            return gram * (kernels @ spatial @ kernels.mT)
        for other, factor in enumerate(self.factors):
            if other != place:
                gram = gram * (factor @ factor.mT)
        return gram

    def with_unit_columns(self) -> Terms:
        """Return the same components with heads and kernels of norm one, their scale in the mix."""
        units, scale = [], torch.ones_like(self.head[..., 0])
        for factor in self.factors:
            norm = torch.linalg.vector_norm(factor, dim=2)
            units.append(factor / torch.where(norm > 0, norm, 1.0)[..., None])
            scale = scale * norm
        return Terms(tuple(units), self.mix * scale[:, None, :])


def _summed_over(kernel: Tensor, factor: Tensor, *, axis: int) -> Tensor:
    """Sum kernels (K, R, ...) over an axis, each position weighted by its entry of the factor (K, R, Kx)."""
    if axis == 2:
        rest = kernel.shape[3:]
        return (factor[..., None, :] @ kernel.flatten(3)).squeeze(2).unflatten(2, rest)
    moved = kernel.movedim(axis, -1)
    return (moved.flatten(2, -2) @ factor[..., None]).squeeze(3).unflatten(2, moved.shape[2:-1])
