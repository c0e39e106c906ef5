"""Components of clusters as one linear map per factor, for fits in the metric of the outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Name = Literal["head", "vertical", "horizontal"]


@dataclass(frozen=True)
class Terms:
    """Components of K clusters, and the filters that mix them, at places of their clusters.

    Attributes:
        head: (K, R, C), float64.
        vertical: (K, R, Kh).
        horizontal: (K, R, Kw).
        mix: (K, S, R), zero at places without a filter.
    """

    head: Tensor
    vertical: Tensor
    horizontal: Tensor
    mix: Tensor

    def kernels(self) -> Tensor:
        """Return the spatial kernels, (K, R, Kh * Kw)."""
        return (self.vertical[..., None] * self.horizontal[..., None, :]).flatten(2)

    def basis(self) -> Tensor:
        """Return the components, (K, R, D)."""
        return (self.head[..., None] * self.kernels()[..., None, :]).flatten(2)

    def weight(self) -> Tensor:
        """Return the filters at their places, (K, S, D)."""
        return self.mix @ self.basis()

    def with_factor(self, name: Name, value: Tensor) -> Terms:
        """Return the components with another factor."""
        return replace(self, **{name: value})

    def transposed(self, name: Name, rows: Tensor) -> Tensor:
        """Apply the transpose of the map from one factor to the weight.

        Args:
            name: The factor; the weight is linear in it.
            rows: Like the weight, (K, S, D).

        Returns:
            In the shape of the factor.
        """
        parts = (self.mix.mT @ rows).unflatten(2, (self.head.shape[2], -1))  # (K, R, C, Kh Kw)
        if name == "head":
            return (parts @ self.kernels()[..., None]).squeeze(3)
        kernel = (self.head[..., None, :] @ parts).squeeze(2).unflatten(2, (self.vertical.shape[2], -1))
        if name == "vertical":
            return (kernel @ self.horizontal[..., None]).squeeze(3)
        return (self.vertical[..., None, :] @ kernel).squeeze(2)

    def gram(self, name: Name, spatial: Tensor) -> Tensor:
        """Return how components overlap, (K, R, R), one factor left out, for inputs whose channels are white.

        Args:
            name: The factor left out.
            spatial: Second moments of kernel positions, (Kh * Kw, Kh * Kw).
        """
        gram = self.mix.mT @ self.mix
        if name == "head":
            kernels = self.kernels()
            return gram * (kernels @ spatial @ kernels.mT)
        other = self.horizontal if name == "vertical" else self.vertical
        return gram * (self.head @ self.head.mT) * (other @ other.mT)

    def with_unit_columns(self) -> Terms:
        """Return the same components with heads and kernels of norm one, their scale in the mix."""
        units, scale = [], torch.ones_like(self.head[..., 0])
        for factor in (self.head, self.vertical, self.horizontal):
            norm = torch.linalg.vector_norm(factor, dim=2)
            units.append(factor / torch.where(norm > 0, norm, 1.0)[..., None])
            scale = scale * norm
        return Terms(units[0], units[1], units[2], self.mix * scale[:, None, :])
