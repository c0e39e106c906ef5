"""First and second moments of what a layer reads and of what it should give, added up batch by batch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.calibration.patches import PatchGeometry
from norton_plugin.cpd.metric import OutputMetric
from norton_plugin.errors import SurgeryError


def not_finite(name: str) -> SurgeryError:
    """Return what to say of the first layer that NaN or infinity reaches."""
    return SurgeryError(
        f"{name} reads or gives values that are not finite on the calibration images; check the images and the weights "
        "of this layer and those before it"
    )


class LayerMoments(NamedTuple):
    """Moments of a layer.

    Attributes:
        metric: Centred moments where the layer's bias (or what follows) can take up the means, raw ones otherwise.
        input_mean: E[x], (G, D).
        target_mean: E[t], (N,).
        samples: Patches that were read.
    """

    metric: OutputMetric
    input_mean: Tensor
    target_mean: Tensor
    samples: int

    def bias(self, weight: Tensor) -> Tensor:
        """Return the bias (N,) with which a weight (N, D) gives outputs of the right mean."""
        groups, length = self.input_mean.shape
        rows = weight.view(groups, -1, length)
        return self.target_mean - (rows @ self.input_mean[..., None]).reshape(-1)


class MomentSums:
    """Sums over patches and targets of one layer, in double precision.

    Memory: 8 (G D^2 + N D) bytes for the sums, D = C Kh Kw (170 MB for 512 channels and a 3x3 kernel), and at most
    ``memory.part``, 200 MiB without a limit, for the patches of a part of a batch.

    Args:
        name: Of the layer, for messages.
        geometry: How it reads its input.
        positions: Output positions read of every image, chosen at random, all images of a batch alike.
        memory: Bounds the patches.
    """

    def __init__(
        self, name: str, geometry: PatchGeometry, *, positions: int, memory: MomentMemory | None = None
    ) -> None:
        self._memory = memory or MomentMemory()
        self.name = name
        self.geometry = geometry
        self.positions = positions
        self.samples = 0
        self._sums: dict[str, Tensor] = {}
        self._origin: tuple[Tensor, Tensor] | None = None

    def choose(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Choose flat output positions, (P,) int64 on the device of the output; all where there are few."""
        count = self.geometry.positions(output)
        order = torch.randperm(count, generator=generator)[: self.positions]
        return order.sort().values.to(output.device)

    def add(self, x: Tensor, target: Tensor, generator: torch.Generator) -> None:
        """Add one call of the layer.

        Args:
            x: Its input; an empty one adds nothing.
            target: What its output should be, of the output's shape.
            generator: Chooses the positions.

        Raises:
            SurgeryError: The values are not finite.
        """
        if x.numel() == 0 or target.numel() == 0:
            return
        # All of them, not only the chosen positions: a layer further on would be named in the place of the first.
        if not bool(torch.isfinite(x).all()) or not bool(torch.isfinite(target).all()):
            raise not_finite(self.name)
        unbatched = -self.geometry.channel_axis
        if not self.geometry.channels_last and x.dim() == unbatched:  # an input without a batch axis is legal
            x, target = x[None], target[None]
        if self.geometry.channels_last and x.dim() == 2:
            x, target = x[:, None], target[:, None]
        chosen, count = self.choose(target, generator), max(1, self.geometry.positions(target))
        size = self.geometry.size_of(target)
        kernel = math.prod(self.geometry.kernel_size)
        width = x.shape[-1] if self.geometry.channels_last else x.shape[1]
        numbers = {"patches": len(chosen) * width * kernel, "targets": len(chosen) * target[0].numel() // count}
        step = self._memory.images_at_once(x, **numbers, name=self.name)
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            patches = self.geometry.patches(x[part], size, chosen)
            self._add_rows(patches, self.geometry.targets(target[part], chosen))

    def _add_rows(self, patches: Tensor, targets: Tensor) -> None:
        """Add patches (M, G, D) with targets (M, N)."""
        groups = patches.shape[1]
        if self._origin is None:
            # Products are taken in single precision: about the means, so that large means hide no small variance.
            self._origin = patches.double().mean(0).to(patches), targets.double().mean(0).to(targets)
        rows = (patches - self._origin[0]).float().transpose(0, 1)  # (G, M, D)
        shifted = (targets - self._origin[1]).float()
        values = shifted.unflatten(1, (groups, -1)).permute(1, 2, 0)  # (G, N / G, M)
        found = {
            "second": torch.bmm(rows.mT, rows),
            "cross": torch.bmm(values, rows).flatten(0, 1),
            "input": rows.double().sum(1),
            "target": shifted.double().sum(0),
            "energy": shifted.double().square().sum(0),
        }
        for key, value in found.items():
            value = value.double()
            if not bool(torch.isfinite(value).all()):
                raise not_finite(self.name)
            self._sums[key] = self._sums[key].add_(value) if key in self._sums else value
        self.samples += len(patches)

    def take_origin(self, other: MomentSums) -> None:
        """Add up about the same means as other sums of the layer, so that both can be put together."""
        if self._origin is None:
            self._origin = other._origin

    def plus(self, other: MomentSums) -> MomentSums:
        """Return the sums over all that these and others about the same means saw."""
        both = MomentSums(self.name, self.geometry, positions=self.positions)
        both.take_origin(self)
        both.samples = self.samples + other.samples
        parts = [sums._sums for sums in (self, other) if sums.samples]
        for key in parts[0] if parts else ():
            both._sums[key] = parts[0][key] if len(parts) == 1 else parts[0][key] + parts[1][key]
        return both

    def result(self, *, centred: bool) -> LayerMoments:
        """Return the moments.

        Args:
            centred: Whether a bias takes up the means.

        Raises:
            SurgeryError: Nothing was added.
        """
        if self._origin is None:
            raise SurgeryError(f"no calibration image reaches {self.name}; give other images, or leave the layer out")
        sums = {key: value / self.samples for key, value in self._sums.items()}
        second, cross, energy = sums["second"], sums["cross"], sums["energy"]
        own = len(sums["target"]) // len(sums["input"])
        # Centred moments do not depend on the origin; raw ones are those and the products of the means.
        second = second - sums["input"][:, :, None] * sums["input"][:, None, :]
        cross = cross - sums["target"][:, None] * sums["input"].repeat_interleave(own, 0)
        energy = (energy - sums["target"].square()).clamp_min(0)
        mean, target = sums["input"] + self._origin[0].double(), sums["target"] + self._origin[1].double()
        if not centred:
            second = second + mean[:, :, None] * mean[:, None, :]
            cross = cross + target[:, None] * mean.repeat_interleave(own, 0)
            energy = energy + target.square()
        return LayerMoments(OutputMetric((second + second.mT) / 2, cross, energy), mean, target, self.samples)
