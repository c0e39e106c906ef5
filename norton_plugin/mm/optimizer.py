"""Which parameters decay, and how strongly."""

from collections.abc import Iterable
from typing import Any

import torch
from mmengine.optim import _ParamScheduler
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
    factors = _factors(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in factors], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in factors], "weight_decay": weight_decay * factor_decay},
    ]
    return [group for group in groups if group["params"]]


def split_factors_(
    optimizer: torch.optim.Optimizer, schedulers: Iterable[_ParamScheduler], model: nn.Module, *, factor_decay: float
) -> int:
    """Gives the factors of CPD blocks a weight decay of their own, in an optimizer that is there already.

    A group that holds factors and other parameters becomes two; the new ones stand at the end, in the order of those
    they come from, with the same settings, so that learning rates and schedules go on alike.

    Args:
        optimizer: Changed in place.
        schedulers: Those of this optimizer; told the base values of the new groups.
        model: Holds the blocks.
        factor_decay: Multiplier of the groups' decay for factors, at least 0; see :func:`parameter_groups`.

    Returns:
        Groups added.
    """
    factors = _factors(model)
    added = []
    for position, group in enumerate(list(optimizer.param_groups)):
        own = [p for p in group["params"] if id(p) in factors]
        if not own:
            continue
        decay = group["weight_decay"] * factor_decay
        if len(own) == len(group["params"]):
            group["weight_decay"] = decay
            continue
        group["params"] = [p for p in group["params"] if id(p) not in factors]
        optimizer.param_groups.append({**group, "params": own, "weight_decay": decay})
        added.append(position)
    for scheduler in schedulers:
        scheduler.base_values += [scheduler.base_values[position] for position in added]
    return len(added)


def _factors(model: nn.Module) -> set[int]:
    blocks = [module for module in model.modules() if isinstance(module, CPDBlock)]
    return {id(getattr(block, name)) for block in blocks for name in _FACTORS}
