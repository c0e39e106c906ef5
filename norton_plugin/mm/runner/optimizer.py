"""Which parameters decay, and how strongly."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from mmengine.optim import _ParamScheduler
from torch import nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.errors import RecipeError

# A multiplier, or "auto": one over the number of factors whose product is the weight.
FactorDecay = float | Literal["auto"]
_FACTORS = ("head", "depth", "vertical", "horizontal", "mix")
_DECAY = "weight_decay"


def check_factor_decay(value: object) -> None:
    """Refuse what is neither a multiplier nor ``"auto"``.

    Raises:
        RecipeError: Say what came.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if value != "auto" and not number:
        raise RecipeError(f"factor_decay is {value!r}, expected a number of at least 0, or 'auto'")


def parameter_groups(
    model: nn.Module, *, weight_decay: float, factor_decay: FactorDecay = "auto"
) -> list[dict[str, Any]]:
    """Split parameters into those that decay as usual and the factors of blocks, which decay less.

    A weight is a product of f factors: three where every filter has its own components (head, vertical, horizontal; of
    3-D kernels one more), four where filters share them (and mix), two for a spatial SVD (vertical, horizontal), a
    shared 1x1 kernel or a Linear layer (head, mix). With decay d on each, one step of size lr shrinks each by (1 - lr
    d), hence the product by (1 - lr d)^f, about 1 - f lr d. ``factor_decay="auto"`` multiplies d by 1/f, which gives
    the product the shrinkage that the dense weight had. A number multiplies for all factors alike: 0 leaves them alone,
    1 treats them like any parameter.

    Args:
        model: The model; parameters that need no gradient are left out.
        weight_decay: Decay of ordinary parameters, at least 0.
        factor_decay: Multiplier of ``weight_decay`` for factors, at least 0, or ``"auto"``.

    Returns:
        Groups for a ``torch.optim`` optimizer: ordinary parameters, then factors, those of the least decay first;
        parameters in the order of ``named_modules``; empty groups are left out.
    """
    shares = _shares(model, factor_decay)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = [p for p in trained if id(p) not in shares]
    groups = [{"params": plain, "weight_decay": weight_decay}] if plain else []
    for share, factors in _by_share(trained, shares):
        groups.append({"params": factors, "weight_decay": weight_decay * share})
    return groups


def split_factors_(
    optimizer: torch.optim.Optimizer,
    schedulers: Iterable[_ParamScheduler],
    model: nn.Module,
    *,
    factor_decay: FactorDecay,
) -> int:
    """Give the factors of blocks a weight decay of their own, in an optimizer that is there already.

    A group that holds factors and other parameters, or factors of different multipliers, becomes several: those of
    the factors stand right after the one they come from, with the same settings, so that learning rates and schedules
    go on alike.

    Args:
        optimizer: Changed in place.
        schedulers: Those of this optimizer; their values for each group follow, decay that they schedule included.
        model: Holds the blocks.
        factor_decay: Multiplier of the groups' decay for factors, at least 0, or ``"auto"``; see
            :func:`parameter_groups`.

    Returns:
        Groups added.

    Raises:
        RecipeError: The optimizer has no weight decay.
    """
    shares = _shares(model, factor_decay)
    values = [lists for scheduler in schedulers for lists in _values_by_group(scheduler)]
    before = len(optimizer.param_groups)
    for position, group in reversed(list(enumerate(optimizer.param_groups))):
        parts = _by_share(group["params"], shares)
        if not parts:
            continue
        if _DECAY not in group:
            raise RecipeError(
                f"factor_decay is {factor_decay}, but {type(optimizer).__name__} has no weight_decay to multiply; "
                "leave factor_decay out"
            )
        plain = [p for p in group["params"] if id(p) not in shares]
        if plain:
            parts.insert(0, (1.0, plain))
        group["params"] = parts[0][1]
        for place, (_, parameters) in enumerate(parts[1:], position + 1):
            optimizer.param_groups.insert(place, {**group, "params": parameters})
            for _, numbers in values:
                # mmengine may count a further group of its own behind the optimizer's: none is put at the end
                numbers.insert(place, numbers[position])
        for place, (share, _) in enumerate(parts, position):
            _multiply_(optimizer.param_groups[place], share)
            for name, numbers in values:
                if name == _DECAY:
                    numbers[place] = numbers[place] * share
    return len(optimizer.param_groups) - before


def _multiply_(group: dict[str, Any], share: float) -> None:
    """Multiply the decay of a group, and the one it began with."""
    for key in (_DECAY, f"initial_{_DECAY}"):
        if key in group:
            group[key] = group[key] * share


def _values_by_group(scheduler: _ParamScheduler) -> Iterator[tuple[str, list[float]]]:
    """Return what is scheduled, and the lists in which a scheduler of mmengine keeps one number for each group."""
    for name in ("base_values", "_last_value", "min_values"):
        numbers = vars(scheduler).get(name)
        if isinstance(numbers, list):
            yield scheduler.param_name, numbers


def factors_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters whose product is the weight of a block; none for any other module."""
    if not isinstance(module, ConvBlock | CPDLinear):
        return []
    return [factor for factor in (getattr(module, name, None) for name in _FACTORS) if factor is not None]


def _shares(model: nn.Module, factor_decay: FactorDecay) -> dict[int, float]:
    """Return the multiplier of every factor, by identity."""
    shares = {}
    for module in model.modules():
        factors = factors_of(module)
        for factor in factors:
            shares[id(factor)] = 1 / len(factors) if factor_decay == "auto" else float(factor_decay)
    return shares


def _by_share(parameters: Iterable[nn.Parameter], shares: dict[int, float]) -> list[tuple[float, list[nn.Parameter]]]:
    """Return the factors among parameters by their multipliers, the least first."""
    found: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        if id(parameter) in shares:
            found.setdefault(shares[id(parameter)], []).append(parameter)
    return sorted(found.items())
