"""Moments of one layer for two halves of the batches, so that what is fitted to one is tried on the other."""

from __future__ import annotations

import torch
from torch import Tensor

from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.calibration.moments import LayerMoments, MomentSums
from norton_plugin.calibration.patches import PatchGeometry


class HalvedSums:
    """Sums over patches and targets; batches in turn count for one half and the other.

    Memory: twice that of `MomentSums`.

    Args:
        name: Of the layer, for messages.
        geometry: How it reads its input.
        positions: Output positions read of every image.
        memory: Bounds the patches.
    """

    def __init__(
        self, name: str, geometry: PatchGeometry, *, positions: int, memory: MomentMemory | None = None
    ) -> None:
        self._halves = [MomentSums(name, geometry, positions=positions, memory=memory) for _ in range(2)]

    @property
    def samples(self) -> int:
        """Patches of both."""
        return sum(half.samples for half in self._halves)

    def add(self, batch: int, x: Tensor, target: Tensor, generator: torch.Generator) -> None:
        """Add one call of the layer.

        Args:
            batch: Place of the batch among all.
            x: As of `MomentSums.add`.
            target: Likewise.
            generator: Likewise.

        Raises:
            SurgeryError: The values are not finite.
        """
        own, other = self._halves[batch % 2], self._halves[1 - batch % 2]
        own.add(x, target, generator)
        other.take_origin(own)

    def whole(self, *, centred: bool) -> LayerMoments:
        """Return the moments of all batches; ``centred`` as of `MomentSums.result`."""
        return self._halves[0].plus(self._halves[1]).result(centred=centred)

    def halves(self, *, centred: bool) -> list[LayerMoments]:
        """Return those of each half that saw anything."""
        return [half.result(centred=centred) for half in self._halves if half.samples]
