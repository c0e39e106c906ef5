"""Which modules hold a parameter: tied layers hold one and the same."""

from __future__ import annotations

from torch import nn


def parameter_holders(model: nn.Module) -> dict[nn.Parameter, tuple[str, ...]]:
    """Return each parameter with the first dotted names of all modules that hold it, in the model's order.

    Args:
        model: The root, whose own name is ``""``.
    """
    holders: dict[nn.Parameter, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        for parameter in dict.fromkeys(module._parameters.values()):
            if parameter is not None:
                holders[parameter] = (*holders.get(parameter, ()), name)
    return holders
