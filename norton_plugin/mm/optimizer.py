"""Which parameters decay, and how strongly."""

from typing import Any

from torch import nn

from ..blocks import CPDBlock

_FACTORS = ("head", "vertical", "horizontal")


def parameter_groups(model: nn.Module, *, weight_decay: float, factor_decay: float = 1 / 3) -> list[dict[str, Any]]:
    """Split parameters into those that decay as usual and the factors of CPD blocks, which decay less.

    With decay d on each of the three factors, one step of size lr shrinks each by (1 - lr d), hence their product,
    the weight they stand for, by (1 - lr d)^3, about 1 - 3 lr d. ``factor_decay=1/3`` gives the product the shrinkage
    that the dense weight had; 0 leaves factors alone; 1 treats them like any parameter.

    Args:
        model: The model; parameters that need no gradient are left out.
        weight_decay: Decay of ordinary parameters, at least 0.
        factor_decay: Multiplier of ``weight_decay`` for factors, at least 0.

    Returns:
        Groups for a ``torch.optim`` optimizer, in the order of ``named_modules``; empty groups are left out.
    """
    blocks = [module for module in model.modules() if isinstance(module, CPDBlock)]
    factors = {id(getattr(block, name)) for block in blocks for name in _FACTORS}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in factors], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in factors], "weight_decay": weight_decay * factor_decay},
    ]
    return [group for group in groups if group["params"]]
