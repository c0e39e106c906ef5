"""Moments of what a layer reads along each axis of its weight: small to store, whatever the number of channels."""

from __future__ import annotations

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
        self._modes: list[Tensor | float] = [0.0, 0.0, 0.0]

    def add(self, x: Tensor, output: Tensor, generator: torch.Generator) -> None:
        """Add one call; an empty one adds nothing."""
        if x.numel() == 0 or output.numel() == 0:
            return
        if self.geometry.channels_last and x.dim() == 2:
            x, output = x[:, None], output[:, None]
        count = self.geometry.positions(output)
        chosen = torch.randperm(count, generator=generator)[: self.positions].sort().values.to(x.device)
        size = (1, 1) if self.geometry.channels_last else (int(output.shape[-2]), int(output.shape[-1]))
        width = x.shape[-1] if self.geometry.channels_last else x.shape[-3]
        numbers = len(chosen) * width * self.geometry.kernel_size[0] * self.geometry.kernel_size[1]
        if not self.geometry.channels_last and x.dim() == 3:
            x = x[None]
        step = self._memory.images_at_once(x, patches=numbers, targets=0)
        for start in range(0, len(x), step):
            self._add_rows(self.geometry.patches(x[start : start + step].float(), size, chosen))

    def _add_rows(self, rows: Tensor) -> None:
        """Add patches (M, G, D)."""
        patches = rows.unflatten(2, (-1, *self.geometry.kernel_size))  # (M, G, C, Kh, Kw)
        self._mean = self._mean + patches.double().sum(0)
        for axis in range(3):
            values = patches.movedim(axis + 2, 2).flatten(3).permute(1, 2, 3, 0).flatten(2)
            self._modes[axis] = self._modes[axis] + (values @ values.mT).double()
        self.samples += len(patches)

    def mean(self) -> Tensor:
        """Return the mean input, (G, C, Kh, Kw)."""
        return torch.as_tensor(self._mean) / self.samples

    def roots(self) -> list[Tensor]:
        """Return the roots of the centred moments, (G, C, C), (G, Kh, Kh), (G, Kw, Kw); the first holds the energy."""
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
