"""Weights in which errors count as those of the outputs do, from unlabelled images.

With F the Fisher weights of the outputs and S the second moments of what one output sees, an error D of the weight
changes the model's prediction by about ``1/2 sum_n F_n D_n' S D_n`` nats. S is taken as the product of moments of the
channels, of the kernel rows and of the kernel columns, which is small to store. Its roots, applied to the axes of the
weight, make that sum the plain energy of the error, and leave what components are: products of vectors.

Only shares of these energies are used: as nats, they order the errors of one layer well, but not those of different
layers, for predictions that are almost sure have next to no Fisher information (docs/method.md, section 8).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration import fisher_weights
from norton_plugin.calibration.input_moments import collect
from norton_plugin.calibration.layers import patch_geometry
from norton_plugin.calibration.memory import MomentMemory, mode_bytes
from norton_plugin.calibration.mode_moments import ModeSums, in_bases
from norton_plugin.surgery.targets import Target

logger = logging.getLogger(__name__)

# Output positions read of every image.
_POSITIONS = 16
# Copies of a layer's sums that are held, with those that a root is computed by, and of its weight.
_COPIES, _WEIGHTS = 6, 6
# Layers that a message names.
_NAMES = 3


@dataclass(frozen=True)
class LayerSensitivity:
    """What errors of a layer's weight count.

    Attributes:
        weight: (G, N / G, C, Kh, Kw), float64.
        roots: Of the second moments along the axes, (G, C, C), (G, Kh, Kh), (G, Kw, Kw).
        scale: Root of half the Fisher weight of each output, (N,).
    """

    weight: Tensor
    roots: tuple[Tensor, ...]
    scale: Tensor

    def seen(self, outputs: Sequence[int] | None = None, inputs: Sequence[int] | None = None) -> Tensor:
        """Return the weight (N, C, Kh, Kw) in units whose squares are nats.

        Args:
            outputs: Filters that stay; None for all.
            inputs: Inputs that stay, of a layer of one group; they take over what the others carried.
        """
        weight, (channel, *kernel) = self.weight, self.roots
        if inputs is not None:
            second = channel[0] @ channel[0]
            own = second[inputs][:, inputs]
            ridge = 1e-3 * float(second.diagonal().mean()) + 1e-300
            gain = torch.linalg.solve(own + ridge * torch.eye(len(own), dtype=own.dtype), second[inputs])
            weight = torch.einsum("gnc...,kc->gnk...", weight, gain)
            values, basis = torch.linalg.eigh(own)
            channel = ((basis * values.clamp_min(0).sqrt()) @ basis.mT)[None]
        seen = in_bases(weight, (channel, *kernel)).flatten(0, 1)
        seen = seen * self.scale.view(-1, *(1,) * (seen.dim() - 1))
        return seen if outputs is None else seen[list(outputs)]

    def projected(self, lost: float) -> tuple[Tensor, float]:
        """Return a weight whose outputs lie in fewer dimensions, and the share of its energy that is lost.

        Args:
            lost: Share that is aimed at, in (0, 1).

        Returns:
            (N, C, Kh, Kw), and the share nearest to the one aimed at; 0 where no dimension can be left out.
        """
        groups, own = self.weight.shape[:2]
        seen = self.seen().flatten(1)
        products = torch.block_diag(*(rows @ rows.mT for rows in seen.chunk(groups)))
        values, basis = torch.linalg.eigh(products)
        shares = values.clamp_min(0).cumsum(0)[:-1] / values.clamp_min(0).sum().clamp_min(1e-300)
        if not len(shares):
            return self.weight.flatten(0, 1), 0.0
        cut = int((shares - lost).abs().argmin()) + 1
        scale = self.scale.clamp_min(float(self.scale.max()) * 1e-6)
        projection = (basis[:, cut:] @ basis[:, cut:].mT) * (scale[None, :] / scale[:, None])
        grouped = torch.stack([projection[g * own : (g + 1) * own, g * own : (g + 1) * own] for g in range(groups)])
        return torch.einsum("gnm,gm...->gn...", grouped, self.weight).flatten(0, 1), float(shares[cut - 1])


def sensitivity_bytes(target: Target) -> int:
    """Return the bytes that measuring a layer takes: its sums, their roots, and its weight in double precision."""
    weight = target.contract.weight
    return _COPIES * mode_bytes(weight, patch_geometry(target.contract)) + _WEIGHTS * 8 * weight.numel()


def layer_sensitivities(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Sequence[Any],
    *,
    call: Callable[[nn.Module, Any], Any],
    seed: int,
    memory: MomentMemory | None = None,
) -> list[LayerSensitivity] | None:
    """Return what errors of layers count.

    Args:
        model: Run in evaluation mode; left as it is.
        targets: Its layers.
        batches: Unlabelled images.
        call: Runs the model on a batch.
        seed: Of the positions, and of what is drawn for the Fisher weights.
        memory: Bounds the patches; moments of all these layers are held.

    Returns:
        One per layer; errors of a layer that images or gradients do not reach are those of its weight. None where they
        reach no layer at all.
    """
    layers = {target.names[0]: target.module for target in targets}
    fisher = fisher_weights(model, layers, batches, call=call, seed=seed)
    sums = {
        target.names[0]: ModeSums(patch_geometry(target.contract), positions=_POSITIONS, memory=memory)
        for target in targets
    }
    collect(model, sums, batches, call=call, seed=seed)
    found, unreached = [], []
    for target in targets:
        name = target.names[0]
        weight = target.contract.weight.detach().double().unflatten(0, (target.shape.groups, -1))
        if name in fisher and sums[name].samples and float(fisher[name].sum()) > 0:
            scale = (fisher[name].to(weight) / 2).sqrt()
            found.append(LayerSensitivity(weight, tuple(sums[name].roots()), scale))
        else:
            found.append(_of_weight(weight))
            unreached.append(name)
    if unreached and len(unreached) < len(targets):
        logger.warning(
            "the budget counts the errors of the weights of %d layers, not of their outputs, since no image or no "
            "gradient reaches them: %s",
            len(unreached),
            ", ".join(unreached[:_NAMES]) + (" ..." if len(unreached) > _NAMES else ""),
        )
    return found if len(unreached) < len(targets) else None


def _of_weight(weight: Tensor) -> LayerSensitivity:
    """Return the sensitivity for which errors are plain errors of the weight (G, N / G, C, Kh, Kw)."""
    groups = len(weight)
    roots = tuple(torch.eye(size).to(weight).expand(groups, -1, -1) for size in weight.shape[2:])
    return LayerSensitivity(weight, roots, torch.ones(groups * weight.shape[1]).to(weight))
