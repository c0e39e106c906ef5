"""Moments of what a layer reads along each axis of its weight: small to store, whatever the number of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.calibration.patches import PatchGeometry


class ModeSums:
    """Sums over patches of one layer for each axis of its weight.

    Memory: 8 G (C^2 + Kh^2 + Kw^2 + D) bytes, and at most ``memory.part`` for the patches of a part of a batch.

    Args:
        geometry: How it reads its input.
        positions: Output positions read of every image.
        memory: Bounds the patches.
    """

    def __init__(self, geometry: PatchGeometry, *, positions: int, memory: MomentMemory | None = None) -> None:
        self._memory = memory or MomentMemory()
        self.geometry = geometry
        self.positions = positions
        self.samples = 0
        self._mean: Tensor | float = 0.0
        self._modes: list[Tensor | float] = [0.0] * (1 + len(geometry.kernel_size))

    def add(self, x: Tensor, output: Tensor, generator: torch.Generator) -> None:
        """Add one call; an empty one adds nothing."""
        if x.numel() == 0 or output.numel() == 0:
            return
        if self.geometry.channels_last and x.dim() == 2:
            x, output = x[:, None], output[:, None]
        elif x.dim() == -self.geometry.channel_axis:  # an input without a batch axis is legal
            x, output = x[None], output[None]
        count, size = self.geometry.positions(output), self.geometry.size_of(output)
        chosen = torch.randperm(count, generator=generator)[: self.positions].sort().values.to(x.device)
        width = x.shape[self.geometry.channel_axis]
        numbers = len(chosen) * width * math.prod(self.geometry.kernel_size)
        step = self._memory.images_at_once(x, patches=numbers, targets=0)
        for start in range(0, len(x), step):
            self._add_rows(self.geometry.patches(x[start : start + step].float(), size, chosen))

    def _add_rows(self, rows: Tensor) -> None:
        """Add patches (M, G, D)."""
        patches = rows.unflatten(2, (-1, *self.geometry.kernel_size))  # (M, G, C, Kh, Kw)
        self._mean = self._mean + patches.double().sum(0)
        for axis in range(len(self._modes)):
            values = patches.movedim(axis + 2, 2).flatten(3).permute(1, 2, 3, 0).flatten(2)
            self._modes[axis] = self._modes[axis] + (values @ values.mT).double()
        self.samples += len(patches)

    def mean(self) -> Tensor:
        """Return the mean input, (G, C, Kh, Kw)."""
        return torch.as_tensor(self._mean) / self.samples

    def roots(self) -> list[Tensor]:
        """Return the roots of the centred moments, (G, C, C) and of each axis; the first holds the energy."""
        mean = self.mean()
        found = []
        for axis, sums in enumerate(self._modes):
            own = mean.movedim(axis + 1, 1).flatten(2)
            second = torch.as_tensor(sums) / self.samples - own @ own.mT
            length = second.shape[-1]
            if axis == 0:
                second = second / own.shape[-1]  # averaged over kernel positions
            else:
                second = second / second.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)[:, None, None]
            values, basis = torch.linalg.eigh((second + second.mT) / 2)
            found.append(
                (basis * values.clamp_min(0).sqrt()[:, None]) @ basis.mT if length > 1 else second.clamp_min(0).sqrt()
            )
        return found


def in_bases(weight: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Multiply the last axes of a weight by a matrix each.

    Args:
        weight: (G, N, C, Kh, Kw), or with another number of axes behind C.
        bases: (G, a, b), for as many of the last axes.
    """
    axes = "cijk"[: weight.dim() - 2]
    old, new = axes[-len(bases) :], "dpqr"[: len(axes)][-len(bases) :]
    pairs = ",".join(f"g{one}{other}" for one, other in zip(old, new, strict=True))
    return torch.einsum(f"gn{axes},{pairs}->gn{axes[: -len(bases)]}{new}", weight, *bases)
