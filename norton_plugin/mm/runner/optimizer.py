"""Which parameters decay, and how strongly."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmengine.optim import _ParamScheduler
from torch import nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import RecipeError

_FACTORS = ("head", "vertical", "horizontal")
_DECAY = "weight_decay"


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
    """Give the factors of CPD blocks a weight decay of their own, in an optimizer that is there already.

    A group that holds factors and other parameters becomes two: the factors' stands right after the one they come
    from, with the same settings, so that learning rates and schedules go on alike.

    Args:
        optimizer: Changed in place.
        schedulers: Those of this optimizer; their values for each group follow, decay that they schedule included.
        model: Holds the blocks.
        factor_decay: Multiplier of the groups' decay for factors, at least 0; see :func:`parameter_groups`.

    Returns:
        Groups added.

    Raises:
        RecipeError: The optimizer has no weight decay.
    """
    factors = _factors(model)
    values = [lists for scheduler in schedulers for lists in _values_by_group(scheduler)]
    added = 0
    for position, group in reversed(list(enumerate(optimizer.param_groups))):
        own = [p for p in group["params"] if id(p) in factors]
        if not own:
            continue
        if _DECAY not in group:
            raise RecipeError(
                f"factor_decay is {factor_decay}, but {type(optimizer).__name__} has no weight_decay to multiply; "
                "leave factor_decay out"
            )
        if len(own) < len(group["params"]):
            group["params"] = [p for p in group["params"] if id(p) not in factors]
            position, group = position + 1, {**group, "params": own}
            optimizer.param_groups.insert(position, group)
            for _, numbers in values:
                # mmengine may count a further group of its own behind the optimizer's: none is put at the end
                numbers.insert(position, numbers[position - 1])
            added += 1
        for key in (_DECAY, f"initial_{_DECAY}"):
            if key in group:
                group[key] = group[key] * factor_decay
        for name, numbers in values:
            if name == _DECAY:
                numbers[position] = numbers[position] * factor_decay
    return added


def _values_by_group(scheduler: _ParamScheduler) -> Iterator[tuple[str, list[float]]]:
    """Return what is scheduled, and the lists in which a scheduler of mmengine keeps one number for each group."""
    for name in ("base_values", "_last_value", "min_values"):
        numbers = vars(scheduler).get(name)
        if isinstance(numbers, list):
            yield scheduler.param_name, numbers


def _factors(model: nn.Module) -> set[int]:
    blocks = [module for module in model.modules() if isinstance(module, CPDBlock)]
    return {id(getattr(block, name)) for block in blocks for name in _FACTORS}
