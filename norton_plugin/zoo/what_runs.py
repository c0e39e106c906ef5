"""Which layers of a model a function runs."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients; flags come back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def called(model: nn.Module) -> Iterator[set[nn.Module]]:
    """While entered, modules of the model that are called are added to the set that is given."""
    found: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(lambda own, _: found.add(own)) for module in model.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def idle_layers(model: nn.Module, ran: Set[nn.Module]) -> list[str]:
    """Return the names of the layers with a weight that did not run."""
    found = []
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        # The last layer of an attention is read by its parent, and not called.
        read = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
        if weight is not None and weight.dim() > 1 and not read and module not in ran:
            found.append(name)
    return found
