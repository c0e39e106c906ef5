"""The criterion "output": channels ranked by what their removal costs the outputs of the layers that read them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.calibrate import take_batches
from norton_plugin.calibration.fisher import fisher_weights
from norton_plugin.calibration.input_moments import InputMoments
from norton_plugin.calibration.memory import MomentMemory
from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import ForwardFunction, run_model
from norton_plugin.pabs import OutputSystem, output_scores

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
        memory: Most bytes that moments may take; None for no limit.

    Attributes:
        moments: What was collected.

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
        memory: int | None = None,
    ) -> None:
        call = partial(run_model, forward_fn=forward_fn)
        settings: dict[str, Any] = {"example_inputs": example_inputs, "positions": positions, "seed": seed}
        settings["memory"] = MomentMemory(memory)
        self.moments = InputMoments(model, batches, call=call, **settings)
        layers = {name: model.get_submodule(name) for name in self.moments.contracts}
        self._fisher = fisher_weights(model, layers, take_batches(batches, _FISHER_IMAGES), call=call, seed=seed)

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
        name, moments = member.name, self.moments
        if name not in self._fisher or not moments.reached(name):
            return []
        if _width_of(member.module) not in (None, moments.contracts[name].weight.shape[1]):
            raise SurgeryError(f"{name} has lost inputs since the images were seen")
        count = group.size // group.channel_groups
        owners = torch.tensor([root % count for root in member.roots])
        order = owners.argsort(stable=True)
        if not torch.equal(owners[order], torch.arange(count).repeat_interleave(len(owners) // count)):
            return []  # channels that it reads a different number of times cannot be held side by side
        places = moments.columns(name, torch.tensor(member.indices)[order]).reshape(count, -1)
        found = moments.systems(name, (self._fisher[name] / 2).sqrt())
        return [OutputSystem(second, weight, places) for second, weight in found]


def _width_of(module: nn.Module | nn.Parameter) -> int | None:
    """Return how many inputs each output of a layer sees now, kernel positions left out."""
    inputs = getattr(module, "in_channels", None) or getattr(module, "in_features", None)
    return inputs // getattr(module, "groups", 1) if isinstance(inputs, int) else None
