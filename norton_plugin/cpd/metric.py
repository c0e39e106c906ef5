"""The error of a layer's output as a function of its weight, from second moments (docs/method.md, section 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Layers with more inputs to an output than this are fitted in single precision: minutes become seconds.
_MOST_INPUTS_IN_DOUBLE = 1152


class OutputMetric(NamedTuple):
    """What decides how well a weight reproduces a target output.

    With x the inputs that one output sees (a patch of D = C Kh Kw numbers), t the target of an output and w its row of
    the weight, the mean squared error is ``E[(t - w.x)^2] = energy - 2 cross.w + w' second w``.

    Attributes:
        second: E[x x'] of every channel group, float64, shape (G, D, D); centred where a bias takes up the means.
        cross: E[t x'] of every output, (N, D); outputs of one group follow each other.
        energy: E[t^2] of every output, (N,).
    """

    second: Tensor
    cross: Tensor
    energy: Tensor

    @property
    def fitting_precision(self) -> torch.dtype:
        """In what to search for a weight of a low error: double precision, single precision for wide layers."""
        return torch.float64 if self.second.shape[1] <= _MOST_INPUTS_IN_DOUBLE else torch.float32

    def to(self, dtype: torch.dtype) -> OutputMetric:
        """Return the metric in another precision."""
        return OutputMetric(*(tensor.to(dtype) for tensor in self))

    def of_outputs(self, chosen: Tensor) -> OutputMetric:
        """Return the metric of some outputs, as many of each group, sorted, int64 (n,)."""
        chosen = chosen.to(self.cross.device)
        return OutputMetric(self.second, self.cross[chosen], self.energy[chosen])

    def times(self, rows: Tensor) -> Tensor:
        """Multiply rows (N, D), sorted by group as the outputs are, by the second moments of their groups."""
        groups, length, _ = self.second.shape
        return torch.bmm(rows.view(groups, -1, length), self.second).view_as(rows)

    def errors(self, weight: Tensor) -> Tensor:
        """Return the mean squared error of every output, (N,), for a weight (N, D)."""
        return self.energy + ((self.times(weight) - 2 * self.cross) * weight).sum(1)

    def nmse(self, weight: Tensor) -> float:
        """Return the error of all outputs over the energy of their targets; 0 where there is none."""
        energy = float(self.energy.sum())
        return max(0.0, float(self.errors(weight).sum()) / energy) if energy > 0 else 0.0

    def weighted(self, scale: Tensor) -> OutputMetric:
        """Return the metric of outputs that are multiplied by ``scale`` (N,): of a weight with its rows multiplied."""
        return OutputMetric(self.second, self.cross * scale[:, None], self.energy * scale.square())

    def towards(self, weight: Tensor, share: float) -> OutputMetric:
        """Add a ridge that pulls towards a weight: ``share`` of the mean of the diagonal, times ||w - weight||^2.

        Args:
            weight: (N, D).
            share: Over 0.
        """
        groups, length, _ = self.second.shape
        ridge = share * self.second.diagonal(dim1=1, dim2=2).mean(1)
        # Inputs that are all zero leave the weight as it is.
        ridge = torch.where(ridge > 0, ridge, torch.ones_like(ridge))
        eye = torch.eye(length, dtype=self.second.dtype, device=self.second.device)
        own = ridge.repeat_interleave(len(weight) // groups)
        return OutputMetric(
            self.second + ridge[:, None, None] * eye,
            self.cross + own[:, None] * weight,
            self.energy + own * weight.square().sum(1),
        )

    def best_weight(self) -> Tensor:
        """Return the weight (N, D) of the lowest error of all; ``second`` must be positive definite."""
        groups, length, _ = self.second.shape
        factor = cholesky(self.second)
        rows = self.cross.view(groups, -1, length).mT
        return torch.cholesky_solve(rows, factor).mT.reshape_as(self.cross)

    def channel_second(self, channels: int) -> Tensor:
        """Return the second moments of channels, averaged over kernel positions, (G, C, C)."""
        groups, length, _ = self.second.shape
        positions = length // channels
        split = self.second.view(groups, channels, positions, channels, positions)
        return split.diagonal(dim1=2, dim2=4).mean(-1)

    def in_channel_basis(self, basis: Tensor) -> OutputMetric:
        """Return the metric of weights whose channels are given in another basis: ``w = basis' w_new``.

        Args:
            basis: (G, C, C), applied to the channels of the inputs: ``x_new = basis x``.
        """
        groups, length, _ = self.second.shape
        channels = basis.shape[1]
        positions = length // channels

        def change(rows: Tensor) -> Tensor:
            parts = rows.reshape(groups, -1, channels, positions)
            return torch.einsum("gnci,gdc->gndi", parts, basis).reshape(groups, -1, length)

        second = change(change(self.second).mT)
        return OutputMetric((second + second.mT) / 2, change(self.cross).reshape_as(self.cross), self.energy)


def cholesky(second: Tensor) -> Tensor:
    """Factor symmetric matrices (..., D, D) that are positive definite but for rounding, with a ridge if need be."""
    mean = second.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(second.dtype).tiny)
    eye = torch.eye(second.shape[-1], dtype=second.dtype, device=second.device)
    for share in (0.0, 1e-8, 1e-6, 1e-4, 1e-2):
        factor, info = torch.linalg.cholesky_ex((second + second.mT) / 2 + share * mean[..., None, None] * eye)
        if not bool(info.any()):
            break
    return factor
