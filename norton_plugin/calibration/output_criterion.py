"""The criterion "output": channels ranked by what their removal costs the outputs of the layers that read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.calibrate import take_batches
from norton_plugin.calibration.fisher import fisher_weights
from norton_plugin.calibration.fitting import ENOUGH, RIDGE, takes_bias
from norton_plugin.calibration.layers import contract_of, patch_geometry
from norton_plugin.calibration.lockstep import does_not_run, trace_layers
from norton_plugin.calibration.mode_moments import ModeSums
from norton_plugin.calibration.moments import MomentSums
from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import ForwardFunction, run_model, traceable
from norton_plugin.pabs import OutputSystem, output_scores
from norton_plugin.surgery.contract import ConvContract, LinearContract

# Layers with more inputs to one output than this have moments of channels and of kernel positions apart: with C inputs
# in place of C Kh Kw, the order takes seconds in place of minutes.
_MOST_INPUTS = 1152
_FISHER_IMAGES = 128


class OutputCriterion:
    """Ranks the channels of groups; what it needs of the images is collected once.

    Args:
        model: The dense model; it is run and left as it is.
        batches: Unlabelled images.
        example_inputs: Shows which layers have a norm behind them.
        forward_fn: ``(model, inputs) -> output`` in place of the plain call.
        positions: Output positions read of every image.
        seed: Of the positions, and of what is drawn for the Fisher weights.

    Raises:
        SurgeryError: The model does not run on the images, or values are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        *,
        example_inputs: Any,
        forward_fn: ForwardFunction | None = None,
        positions: int = 32,
        seed: int = 0,
    ) -> None:
        self._contracts: dict[str, ConvContract | LinearContract] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                contract = contract_of(module)
                if isinstance(contract, ConvContract | LinearContract):
                    self._contracts[name] = contract
        layers = {name: model.get_submodule(name) for name in self._contracts}
        call = partial(run_model, forward_fn=forward_fn)
        with traceable(model):
            places = trace_layers(model, list(layers.values()), partial(call, model, example_inputs))
        norms = {place.module: place.norm for place in places}
        self._centred = {name: takes_bias(layer, norms.get(layer)) for name, layer in layers.items()}
        self._sums = _collect(model, self._contracts, batches, call=call, positions=positions, seed=seed)
        few = take_batches(batches, _FISHER_IMAGES)
        self._fisher = fisher_weights(model, layers, few, call=call, seed=seed)

    def __call__(self, group: ChannelGroup) -> Tensor:
        """Return one score per root channel, (size,), upwards in the order of removal.

        Raises:
            SurgeryError: No layer that reads the channels was reached by the images, or none is a convolution or a
                Linear layer.
        """
        systems = [system for member in group.consumers for system in self._systems(member, group)]
        if not systems:
            raise SurgeryError("no convolution and no Linear layer that the images reach reads these channels")
        return output_scores(systems).repeat(group.channel_groups)

    def _systems(self, member: Member, group: ChannelGroup) -> list[OutputSystem]:
        """Return what a consumer computes from the channels, for each of its channel groups."""
        contract, sums = self._contracts.get(member.name), self._sums.get(member.name)
        if contract is None or sums is None or sums.samples == 0 or member.name not in self._fisher:
            return []
        width = contract.weight.shape[1]
        if _width_of(member.module) not in (None, width):
            raise SurgeryError(f"{member.name} has lost inputs since the images were seen")
        count = group.size // group.channel_groups
        owners = torch.tensor([root % count for root in member.roots])
        order = owners.argsort(stable=True)
        if not torch.equal(owners[order], torch.arange(count).repeat_interleave(len(owners) // count)):
            return []  # channels that it reads a different number of times cannot be held side by side
        own = torch.tensor(member.indices)[order].view(count, -1)
        scale = (self._fisher[member.name] / 2).sqrt()
        if isinstance(sums, ModeSums):
            return [OutputSystem(second, weight, own) for second, weight in _by_modes(contract, sums, scale)]
        kernel = contract.weight[0, 0].numel()
        places = (own[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
        found = _exactly(contract, sums, scale, centred=self._centred[member.name])
        return [OutputSystem(second, weight, places) for second, weight in found]


def _groups_of(contract: ConvContract | LinearContract) -> int:
    return contract.groups if isinstance(contract, ConvContract) else 1


def _width_of(module: nn.Module | nn.Parameter) -> int | None:
    """Return how many inputs each output of a layer sees now, kernel positions left out."""
    inputs = getattr(module, "in_channels", None) or getattr(module, "in_features", None)
    return inputs // getattr(module, "groups", 1) if isinstance(inputs, int) else None


def _exactly(
    contract: ConvContract | LinearContract, sums: MomentSums, scale: Tensor, *, centred: bool
) -> list[tuple[Tensor, Tensor]]:
    """Return second moments (D, D) and weights (M, D) of each channel group."""
    second = sums.result(centred=centred).metric.second
    weight = (contract.weight.double().flatten(1) * scale.to(contract.weight.device)[:, None]).cpu()
    share = RIDGE * max(1.0, ENOUGH * second.shape[-1] / sums.samples)
    return [(_with_ridge(own, share), rows) for own, rows in zip(second.cpu(), weight.chunk(len(second)), strict=True)]


def _by_modes(contract: ConvContract | LinearContract, sums: ModeSums, scale: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return moments of channels (C, C), and weights (M Kh Kw, C) in units of what kernel positions vary by."""
    channel, row, column = sums.roots()
    weight = contract.weight.double() * scale.to(contract.weight.device)[:, None, None, None]
    weight = weight.unflatten(0, (_groups_of(contract), -1))
    weight = torch.einsum("gncij,gip,gjq->gnpqc", weight, row.to(weight), column.to(weight)).flatten(1, 3).cpu()
    share = RIDGE * max(1.0, ENOUGH * channel.shape[-1] / sums.samples)
    return [(_with_ridge((root @ root).cpu(), share), rows) for root, rows in zip(channel, weight, strict=True)]


def _with_ridge(second: Tensor, share: float) -> Tensor:
    ridge = share * float(second.diagonal().mean())
    return second + (ridge if ridge > 0 else 1.0) * torch.eye(len(second), dtype=second.dtype)


def _collect(
    model: nn.Module,
    contracts: dict[str, ConvContract | LinearContract],
    batches: Sequence[Any],
    *,
    call: Callable[[nn.Module, Any], Any],
    positions: int,
    seed: int,
) -> dict[str, MomentSums | ModeSums]:
    """Return moments of what all layers read, from one pass over the images."""
    sums: dict[str, MomentSums | ModeSums] = {}
    for name, contract in contracts.items():
        geometry = patch_geometry(contract)
        wide = contract.weight[0].numel() > _MOST_INPUTS
        sums[name] = (
            ModeSums(geometry, positions=positions) if wide else MomentSums(name, geometry, positions=positions)
        )
    generator = torch.Generator().manual_seed(seed)

    def read(own: MomentSums | ModeSums, module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            axis = -1 if own.geometry.channels_last else -3
            # Of the output only the positions count: one channel of each group is enough.
            own.add(args[0], output.narrow(axis, 0, own.geometry.groups), generator)

    handles = [model.get_submodule(name).register_forward_hook(partial(read, own)) for name, own in sums.items()]
    try:
        with traceable(model):
            for batch in batches:
                try:
                    call(model, batch)
                except SurgeryError:
                    raise
                except Exception as error:
                    raise does_not_run(error) from error
    finally:
        for handle in handles:
            handle.remove()
    return sums
