"""Second moments of what every layer of a model reads, collected in one pass over images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.fitting import takes_bias
from norton_plugin.calibration.layers import contract_of, patch_geometry
from norton_plugin.calibration.lockstep import failures_explained, trace_layers
from norton_plugin.calibration.memory import MomentMemory, full_bytes, mode_bytes, sums_to_hold
from norton_plugin.calibration.mode_moments import ModeSums, in_bases
from norton_plugin.calibration.moments import MomentSums
from norton_plugin.calibration.ridge import ENOUGH, RIDGE
from norton_plugin.modules.running import traceable
from norton_plugin.surgery.contract import ConvContract, LinearContract

Contract = ConvContract | LinearContract
# Layers with more inputs to one output than this have moments of channels and of kernel positions apart: with C inputs
# in place of C Kh Kw, what is solved with them takes seconds in place of minutes.
_MOST_INPUTS = 1152


class InputMoments:
    """What the convolutions and Linear layers of a model read.

    Memory: at most 11 MB for the moments of a layer of up to 1152 inputs, 8 (C^2 + C Kh Kw) bytes for each channel
    group of a wider one; with a limit, those that take most are held as those of wider ones until all fit.

    Args:
        model: It is run and left as it is.
        batches: Unlabelled images.
        example_inputs: Shows which layers have a norm behind them.
        call: Runs the model on a batch.
        positions: Output positions read of every image.
        seed: Of the positions.
        memory: The limit.

    Attributes:
        contracts: What each layer computes, by its first dotted name.
        norms: The BatchNorm that alone reads a layer's output, by the layer's name.

    Raises:
        SurgeryError: The model does not run on the images, or values are not finite.
        RecipeError: The limit does not suffice; the least that would do is said.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        *,
        example_inputs: Any,
        call: Callable[[nn.Module, Any], Any],
        positions: int = 32,
        seed: int = 0,
        memory: MomentMemory | None = None,
    ) -> None:
        self.contracts: dict[str, Contract] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                contract = contract_of(module)
                if isinstance(contract, Contract):
                    self.contracts[name] = contract
        layers = {name: model.get_submodule(name) for name in self.contracts}
        with traceable(model):
            places = trace_layers(model, list(layers.values()), partial(call, model, example_inputs))
        behind = {place.module: place.norm for place in places}
        self.norms = {name: norm for name, layer in layers.items() if (norm := behind.get(layer)) is not None}
        self._centred = {name: takes_bias(layer, behind.get(layer)) for name, layer in layers.items()}
        self._sums = _sums_of(self.contracts, positions, memory or MomentMemory())
        collect(model, self._sums, batches, call=call, seed=seed)

    def reached(self, name: str) -> bool:
        """Tell whether the images reach a layer whose contract is known."""
        return name in self._sums and self._sums[name].samples > 0

    def columns(self, name: str, inputs: Tensor) -> Tensor:
        """Return the columns of ``systems`` that some inputs have, (len(inputs), b).

        Args:
            name: Of the layer.
            inputs: Positions along the second axis of its weight, (...,).
        """
        if isinstance(self._sums[name], ModeSums):
            return inputs.flatten()[:, None]
        kernel = self.contracts[name].weight[0, 0].numel()
        return inputs.flatten()[:, None] * kernel + torch.arange(kernel)

    def systems(self, name: str, scale: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return second moments (D, D), with a ridge, and weights (M, D) of each channel group of a layer.

        Args:
            name: Of the layer.
            scale: Factor of each output, (N,).
        """
        weight, sums = self.contracts[name].weight.double(), self._sums[name]
        weight = weight * scale.to(weight).view(-1, *(1,) * (weight.dim() - 1))
        if isinstance(sums, ModeSums):
            channel, *kernel = sums.roots()
            grouped = weight.unflatten(0, (len(channel), -1))
            turned = in_bases(grouped, [root.to(weight) for root in kernel])
            rows = turned.movedim(2, -1).flatten(1, -2)
            second = channel @ channel
        else:
            second = sums.result(centred=self._centred[name]).metric.second
            rows = weight.flatten(1).unflatten(0, (len(second), -1))
        share = RIDGE * max(1.0, ENOUGH * second.shape[-1] / sums.samples)
        return [(_with_ridge(own.cpu(), share), each.cpu()) for own, each in zip(second, rows, strict=True)]

    def taken_over(self, name: str, kept: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the weight and the shift of the outputs with which a layer does best without some of its inputs.

        Args:
            name: Of a layer of one channel group.
            kept: Inputs that stay, positions along the second axis of its weight.

        Returns:
            (N, C, Kh, Kw) in double precision, zero for the other inputs; and (N,), to be added to the bias, zero where
            nothing takes up the means.
        """
        dense, sums = self.contracts[name].weight.double().cpu(), self._sums[name]
        ((second, _),) = self.systems(name, torch.ones(len(dense)))
        own = self.columns(name, torch.tensor(kept)).flatten()
        factor = torch.linalg.cholesky(second[own][:, own])
        weight = torch.zeros_like(dense)
        if isinstance(sums, ModeSums):
            gain = torch.cholesky_solve(second[own], factor)  # (kept, C)
            weight[:, own] = torch.einsum("nc...,kc->nk...", dense, gain)
        else:
            weight.view(len(dense), -1)[:, own] = torch.cholesky_solve(second[own] @ dense.flatten(1).mT, factor).mT
        return weight, self.shift(name, weight)

    def shift(self, name: str, weight: Tensor) -> Tensor:
        """Return what another weight (N, C, Kh, Kw) of a layer takes from the means of its outputs, (N,).

        Zero where nothing takes up the means.
        """
        sums, dense = self._sums[name], self.contracts[name].weight.double().cpu()
        if not self._centred[name]:
            return torch.zeros(len(dense), dtype=torch.float64)
        mean = sums.mean() if isinstance(sums, ModeSums) else sums.result(centred=True).input_mean
        mean = mean.double().cpu().flatten(1)  # (G, D)
        lost = (dense - weight.double().cpu()).flatten(1).unflatten(0, (len(mean), -1))
        return (lost @ mean[:, :, None]).flatten()


def _with_ridge(second: Tensor, share: float) -> Tensor:
    ridge = share * float(second.diagonal().mean())
    return second + (ridge if ridge > 0 else 1.0) * torch.eye(len(second), dtype=second.dtype)


def _sums_of(
    contracts: Mapping[str, Contract], positions: int, memory: MomentMemory
) -> dict[str, MomentSums | ModeSums]:
    """Return empty sums of all layers that fit into the memory together."""
    geometries = {name: patch_geometry(contract) for name, contract in contracts.items()}
    full, modes = {}, {}
    for name, contract in contracts.items():
        groups = geometries[name].groups
        full[name] = full_bytes(contract.weight, geometries[name], targets=groups)
        modes[name] = mode_bytes(contract.weight, geometries[name])
    narrow = {name for name, contract in contracts.items() if contract.weight[0].numel() <= _MOST_INPUTS}
    whole = sums_to_hold(full, modes, narrow, memory)
    kinds: dict[str, Any] = {"positions": positions, "memory": memory}
    return {
        name: MomentSums(name, own, **kinds) if name in whole else ModeSums(own, **kinds)
        for name, own in geometries.items()
    }


def collect(
    model: nn.Module,
    sums: Mapping[str, MomentSums | ModeSums],
    batches: Sequence[Any],
    *,
    call: Callable[[nn.Module, Any], Any],
    seed: int,
) -> None:
    """Add what layers read to their sums, in one pass over images.

    Args:
        model: Run in evaluation mode and left as it is.
        sums: By the names of the layers.
        batches: Unlabelled images.
        call: Runs the model on a batch.
        seed: Of the positions.

    Raises:
        SurgeryError: The model does not run on the images, or values are not finite.
    """
    generator = torch.Generator().manual_seed(seed)

    def read(own: MomentSums | ModeSums, module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            axis = own.geometry.channel_axis
            # Of the output only the positions count: one channel of each group is enough.
            own.add(args[0], output.narrow(axis, 0, own.geometry.groups), generator)

    handles = [model.get_submodule(name).register_forward_hook(partial(read, own)) for name, own in sums.items()]
    try:
        with traceable(model):
            for batch in batches:
                with failures_explained():
                    call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
