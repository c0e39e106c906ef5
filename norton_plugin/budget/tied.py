"""Layers that hold one weight: what becomes of it is decided once, and it is counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from norton_plugin.budget.menu import LayerMenu
from norton_plugin.budget.solve import Values
from norton_plugin.modules.holders import parameter_holders


@dataclass(frozen=True)
class JointOption:
    """One way for the layers of a joint menu to be.

    Attributes:
        places: Of the option of each layer, in its own menu.
        macs: Of all of them.
        parameters: Of all of them; a weight that they share is counted once.
        error: Sum over them.
        nanoseconds: Of all of them.
    """

    places: tuple[int, ...]
    macs: int
    parameters: int
    error: float
    nanoseconds: int = 0


@dataclass(frozen=True)
class JointMenu:
    """The options of one layer, or of all layers that hold one weight; these become the same.

    Attributes:
        members: Places of the layers among the menus.
        options: The dense one first.
    """

    members: tuple[int, ...]
    options: tuple[JointOption, ...]


def joint_menus(model: nn.Module, menus: Sequence[LayerMenu], errors: Sequence[Values]) -> list[JointMenu]:
    """Join the menus of layers that hold one weight.

    A weight that a layer without a menu holds as well stays in the model, whatever the others become.

    Args:
        model: Tells who holds what.
        menus: One per layer.
        errors: Per menu (options,).
    """
    holders = Counter(parameter for module in model.modules() for parameter in module._parameters.values())
    groups: dict[object, list[int]] = {}
    for place, menu in enumerate(menus):
        groups.setdefault(_weight(menu) if _weight(menu) is not None else menu, []).append(place)
    return [_join(members, menus, errors, others=_others(key, members, holders)) for key, members in groups.items()]


def shared_weights(model: nn.Module) -> dict[nn.Parameter, tuple[str, ...]]:
    """Return each weight of a layer that other modules hold as well, with the first dotted names of all of them."""
    weights = {module._parameters.get("weight") for module in model.modules()}
    holders = parameter_holders(model)
    return {each: names for each, names in holders.items() if len(names) > 1 and each in weights}


def _weight(menu: LayerMenu) -> nn.Parameter | None:
    return menu.target.module._parameters.get("weight")


def _others(weight: object, members: Sequence[int], holders: Counter[nn.Parameter | None]) -> bool:
    return isinstance(weight, nn.Parameter) and holders[weight] > len(members)


def _join(members: Sequence[int], menus: Sequence[LayerMenu], errors: Sequence[Values], *, others: bool) -> JointMenu:
    """Return the options that all members have."""
    own = [menus[member] for member in members]
    places = [{option.layout: place for place, option in enumerate(menu.options)} for menu in own]
    weight = own[0].options[0].parameters
    options = []
    for layout in places[0]:
        if any(layout not in each for each in places):
            continue
        chosen = tuple(each[layout] for each in places)
        picked = [menu.options[place] for menu, place in zip(own, chosen, strict=True)]
        parameters = weight if layout is None else sum(o.parameters for o in picked) + (weight if others else 0)
        error = sum(float(errors[member][place]) for member, place in zip(members, chosen, strict=True))
        nanoseconds = sum(o.nanoseconds for o in picked)
        options.append(JointOption(chosen, sum(o.macs for o in picked), parameters, error, nanoseconds))
    return JointMenu(tuple(members), tuple(options))
