"""Attributes of a block that follow from its parameters, and are assigned by tools that copy every attribute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def restates(module: nn.Module, name: str, value: Any) -> bool:
    """Tell whether an assignment says of a derived attribute what it is anyway.

    Torch-Pruning's ``load_state_dict`` assigns all that ``dir`` names, properties without a setter too.

    Args:
        module: Has its parameters already.
        name: Of the attribute that is assigned.
        value: What it is given.

    Returns:
        Whether there is nothing to do: the attribute is a read-only property and has this value.

    Raises:
        AttributeError: It is a read-only property and has another value.
    """
    own = getattr(type(module), name, None)
    if not isinstance(own, property) or own.fset is not None or isinstance(value, Tensor):
        return False
    if not _equal(getattr(module, name), value):
        kind = type(module).__name__
        raise AttributeError(
            f"{name} of a {kind} follows from its parameters and is not {value!r}; change those instead"
        )
    return True


def _equal(own: Any, value: Any) -> bool:
    if isinstance(own, Tensor) and isinstance(value, Tensor):
        return torch.equal(own, value)
    if isinstance(own, tuple) and isinstance(value, tuple):
        return len(own) == len(value) and all(_equal(*pair) for pair in zip(own, value, strict=True))
    return bool(own == value)
