"""A copy of a model that surgery may change."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from norton_plugin.errors import SurgeryError


def _computed_attributes(model: nn.Module) -> dict[int, Any]:
    """Copy, detached and by identity, tensors that modules compute and keep, such as the weights of weight_norm."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}


def duplicate(model: nn.Module) -> nn.Module:
    """Copy a model with its weights and flags; gradients and hooks of tensors stay behind.

    Raises:
        SurgeryError: It keeps something that cannot be copied.
    """
    try:
        with torch.no_grad():  # scripted modules copy their parameters by an operation
            copied = copy.deepcopy(model, _computed_attributes(model))
    except Exception as error:
        raise SurgeryError(
            f"the model cannot be copied ({type(error).__name__}: {error}); detach tensors that it keeps as plain "
            "attributes, and compress before it is wrapped or compiled"
        ) from error
    for new, old in zip(copied.parameters(), model.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    return copied


def counterparts(model: nn.Module, copied: nn.Module, modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Find the modules of a copy that stand where these stand in the original.

    Raises:
        SurgeryError: One of them is not part of the model.
    """
    names = {module: name for name, module in model.named_modules()}
    missing = [type(m).__name__ for m in modules if m not in names]
    if missing:
        raise SurgeryError(f"ignored modules {missing} are not part of the model")
    return [copied.get_submodule(names[m]) for m in modules]
