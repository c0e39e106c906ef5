"""Replacing a module by identity: in every parent that holds it, once."""

from __future__ import annotations

from torch import nn

from norton_plugin.errors import SurgeryError


def names_by_identity(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Return all dotted names of every module object; a shared one has several.

    Args:
        model: The root; it is listed under the name ``""``.
    """
    names: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), name)
    return names


def swap_(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Put each replacement wherever its original is used in the model.

    Args:
        model: Changed in place.
        replacements: From the module to be replaced to its successor.

    Raises:
        SurgeryError: An original is the model itself, or is not part of it; nothing is changed then.
    """
    if model in replacements:
        raise SurgeryError(
            f"the model is itself the {type(model).__name__} to be replaced; wrap it, as in nn.Sequential(layer)"
        )
    places: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in model.modules():
        for attribute, child in parent._modules.items():
            if child is not None and child in replacements:
                places.append((parent, attribute, child))
    missing = [type(old).__name__ for old in replacements if all(child is not old for _, _, child in places)]
    if missing:
        raise SurgeryError(f"not part of the model: {', '.join(missing)}")
    for parent, attribute, child in places:
        parent._modules[attribute] = replacements[child]


def take_over_flags_(new: nn.Module, old: nn.Module) -> None:
    """Give a replacement the training flag and ``requires_grad`` of what it replaces; the bias has its own."""
    new.train(old.training)
    flags = {name: p.requires_grad for name, p in old.named_parameters()}
    weights = any(flag for name, flag in flags.items() if name != "bias")
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(flags.get("bias", weights) if name == "bias" else weights)


def renew_references_(module: nn.Module) -> None:
    """Update a recurrent layer's own list of its parameters after they were replaced."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
