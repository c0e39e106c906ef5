"""Weights in which errors count as those of the outputs do, from unlabelled images.

With F the Fisher weights of the outputs and S the second moments of what one output sees, an error D of the weight
changes the model's prediction by about ``1/2 sum_n F_n D_n' S D_n`` nats. S is taken as the product of moments of the
channels, of the kernel rows and of the kernel columns, which is small to store. Its roots, applied to the axes of the
weight, make that sum the plain energy of the error, and leave what components are: products of vectors.

Only shares of these energies are used: as nats, they order the errors of one layer well, but not those of different
layers, for predictions that are almost sure have next to no Fisher information (docs/method.md, section 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration import fisher_weights
from norton_plugin.calibration.layers import patch_geometry
from norton_plugin.calibration.patches import PatchGeometry
from norton_plugin.surgery.targets import Target

# Output positions read of every image.
_POSITIONS = 16


class _ModeSums:
    """Sums over patches of one layer for each axis of its weight.

    Memory: 8 G (C^2 + Kh^2 + Kw^2 + D) bytes, and the patches of one batch.
    """

    def __init__(self, geometry: PatchGeometry) -> None:
        self.geometry = geometry
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
        chosen = torch.randperm(count, generator=generator)[:_POSITIONS].sort().values.to(x.device)
        size = (1, 1) if self.geometry.channels_last else (int(output.shape[-2]), int(output.shape[-1]))
        rows = self.geometry.patches(x.float(), size, chosen)
        patches = rows.unflatten(2, (-1, *self.geometry.kernel_size))  # (M, G, C, Kh, Kw)
        self._mean = self._mean + patches.double().sum(0)
        for axis in range(3):
            values = patches.movedim(axis + 2, 2).flatten(3).permute(1, 2, 3, 0).flatten(2)
            self._modes[axis] = self._modes[axis] + (values @ values.mT).double()
        self.samples += len(patches)

    def roots(self) -> list[Tensor]:
        """Return the roots of the centred moments, (G, C, C), (G, Kh, Kh), (G, Kw, Kw); the first holds the energy."""
        mean = torch.as_tensor(self._mean) / self.samples
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


def sensitive_weights(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Sequence[Any],
    *,
    call: Callable[[nn.Module, Any], Any],
    seed: int,
) -> list[Tensor] | None:
    """Return the weights (N, C, Kh, Kw) of layers in such units: squares are nats.

    Args:
        model: Run in evaluation mode; left as it is.
        targets: Its layers.
        batches: Unlabelled images.
        call: Runs the model on a batch.
        seed: Of the positions, and of what is drawn for the Fisher weights.

    Returns:
        One per layer, or None where a layer is not reached by the images or by gradients.
    """
    layers = {target.names[0]: target.module for target in targets}
    fisher = fisher_weights(model, layers, batches, call=call, seed=seed)
    sums = _mode_sums(model, targets, batches, call=call, seed=seed)
    found = []
    for target in targets:
        name = target.names[0]
        if name not in fisher or not sums[name].samples or not float(fisher[name].sum()) > 0:
            return None
        channel, row, column = sums[name].roots()
        weight = target.contract.weight.detach().double().unflatten(0, (target.shape.groups, -1))
        weight = torch.einsum("gncij,gcd,gip,gjq->gndpq", weight, channel, row, column).flatten(0, 1)
        found.append(weight * (fisher[name].to(weight) / 2).sqrt()[:, None, None, None])
    return found


@torch.no_grad()
def _mode_sums(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Sequence[Any],
    *,
    call: Callable[[nn.Module, Any], Any],
    seed: int,
) -> Mapping[str, _ModeSums]:
    generator = torch.Generator().manual_seed(seed)
    sums = {target.names[0]: _ModeSums(patch_geometry(target.contract)) for target in targets}

    def read(own: _ModeSums, module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            own.add(args[0], output, generator)

    handles = [target.module.register_forward_hook(partial(read, sums[target.names[0]])) for target in targets]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for batch in batches:
            call(model, batch)
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    return sums
