"""A selection of what a module returns: how a module without weights, such as a sine encoding, loses channels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from norton_plugin.errors import SurgeryError


@dataclass(frozen=True)
class OutputSelection:
    """A hook that keeps some positions of one dimension of the tensor that a module returns.

    Attributes:
        dim: The dimension.
        size: Its positions in what the module itself returns.
        kept: Those that stay, in ascending order.
    """

    dim: int
    size: int
    kept: tuple[int, ...]

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        """Return the kept positions of an output; one that has no others comes back as it is.

        Raises:
            SurgeryError: The module returned something of another size.
        """
        found = output.shape[self.dim] if isinstance(output, Tensor) and output.dim() > self.dim else None
        if found == len(self.kept):
            return output
        if found != self.size:
            raise SurgeryError(
                f"{type(module).__name__} returned {found} channels along dimension {self.dim}, expected {self.size}: "
                f"{len(self.kept)} of them are selected; build the model with the arguments that it was compressed with"
            )
        return output.index_select(self.dim, torch.tensor(self.kept, device=output.device))


def has_weights(module: nn.Module) -> bool:
    """Tell whether a module computes with numbers of its own, rather than from sizes and constants alone."""
    return any(tensor.is_floating_point() for tensor in (*module.parameters(), *module.buffers()))


def output_selection(module: nn.Module) -> OutputSelection | None:
    """Return the selection of a module's output, None where it returns all."""
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, OutputSelection)), None)


def select_output_(module: nn.Module, selection: OutputSelection) -> None:
    """Give a module a selection in place of the one it may have; hooks of others see what it leaves.

    Args:
        module: Changed in place, in a way that a ``Snapshot`` takes back.
        selection: Of what the module itself returns.
    """
    hooks: OrderedDict[int, Any] = OrderedDict()
    hooks[RemovableHandle(hooks).id] = selection
    hooks.update((key, hook) for key, hook in module._forward_hooks.items() if not isinstance(hook, OutputSelection))
    module._forward_hooks = hooks


def narrow_output_(module: nn.Module, dim: int, size: int, kept: Sequence[int]) -> None:
    """Keep some positions of what a module returns now.

    Args:
        module: Changed in place.
        dim: Dimension of its output.
        size: Positions of that now.
        kept: Those that stay, in ascending order.
    """
    before = output_selection(module)
    if before is None:
        select_output_(module, OutputSelection(dim, size, tuple(kept)))
    else:
        select_output_(module, OutputSelection(dim, before.size, tuple(before.kept[i] for i in kept)))
