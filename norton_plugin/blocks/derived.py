"""Assignments to attributes of a block that follow from its parameters: what tools do who take it for a plain layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Largest relative difference of an assigned weight from one whose filters are multiples of the block's own.
_TOLERANCE = 1e-4


def assigned_(module: nn.Module, name: str, value: Any) -> bool:
    """Carry out an assignment to a read-only property of a block, where it can be.

    A ``weight`` whose filters are multiples of the block's own scales the factor that belongs to each filter alone:
    that is what folding a BatchNorm does (``torch.nn.utils.fusion``). Any other property takes what it is anyway:
    Torch-Pruning's ``load_state_dict`` assigns all that ``dir`` names.

    Args:
        module: Has its parameters already.
        name: Of the attribute that is assigned.
        value: What it is given.

    Returns:
        Whether ``name`` is such a property, so that nothing is left to do.

    Raises:
        AttributeError: The parameters cannot give it this value.
    """
    own = getattr(type(module), name, None)
    if not isinstance(own, property) or own.fset is not None:
        return False
    if name == "weight" and isinstance(value, Tensor):
        _scale_(module, value)
    elif not _equal(getattr(module, name), value):
        kind = type(module).__name__
        raise AttributeError(f"{name} of a {kind} follows from its parameters, it is not {value!r}; change those")
    return True


@torch.no_grad()
def _scale_(module: Any, weight: Tensor) -> None:
    """Scale each filter so that the dense weight becomes ``weight``, (N, ...) of the block's own shape."""
    own = module.weight
    if own.shape != weight.shape:
        raise AttributeError(f"the weight of this block has shape {tuple(own.shape)}, not {tuple(weight.shape)}")
    old, new = own.flatten(1).double(), weight.to(own).flatten(1).double()
    energy = old.square().sum(1)
    gain = torch.where(energy > 0, (old * new).sum(1) / energy.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
    if float((new - gain[:, None] * old).norm()) > _TOLERANCE * float(new.norm()):
        raise AttributeError(
            "a block holds factors: its weight can be scaled filter by filter, and not be set to any other; use "
            "set_factors, or decompose the new weight (from_conv)"
        )
    factor = getattr(module, module.filter_factor)
    factor.mul_(gain.to(factor).reshape(-1, *(1,) * (factor.dim() - 1)))


def _equal(own: Any, value: Any) -> bool:
    if isinstance(own, Tensor) and isinstance(value, Tensor):
        return torch.equal(own, value)
    if isinstance(own, tuple) and isinstance(value, tuple):
        return len(own) == len(value) and all(_equal(*pair) for pair in zip(own, value, strict=True))
    return bool(own == value)
