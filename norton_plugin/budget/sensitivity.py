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
from norton_plugin.calibration.mode_moments import ModeSums
from norton_plugin.surgery.targets import Target

# Output positions read of every image.
_POSITIONS = 16


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
) -> Mapping[str, ModeSums]:
    generator = torch.Generator().manual_seed(seed)
    sums = {target.names[0]: ModeSums(patch_geometry(target.contract), positions=_POSITIONS) for target in targets}

    def read(own: ModeSums, module: nn.Module, args: Any, output: Any) -> None:
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
