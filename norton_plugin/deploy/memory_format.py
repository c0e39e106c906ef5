"""Memory formats of a model's weights, and whether the model runs in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks.convolutions import CHANNELS_LAST
from norton_plugin.deploy.region_pooling import needs_contiguous_maps
from norton_plugin.modules.running import traceable

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def lay_out_(model: nn.Module, memory: torch.memory_format) -> nn.Module:
    """Lay out all weights of convolutions in a memory format, in place; those of 3-D ones in its form for 5 axes."""
    return model._apply(lambda tensor: laid_out(tensor, memory))


def laid_out(x: Tensor, memory: torch.memory_format) -> Tensor:
    """Return a map (B, C, H, W) or (B, C, D, H, W), or a weight, in a memory format; any other tensor as it is.

    Args:
        x: Of any number of axes.
        memory: A value of ``FORMATS``; ``torch.channels_last`` stands for ``torch.channels_last_3d`` too.
    """
    axes = x.dim() - 2
    if axes not in CHANNELS_LAST:
        return x
    return x.to(memory_format=CHANNELS_LAST[axes] if memory == torch.channels_last else memory)


def runs_in_(model: nn.Module, memory_format: str, run: Callable[[nn.Module], Any]) -> bool:
    """Lay out a model in place and tell whether it runs so; where it does not, it is contiguous afterwards.

    In ``channels_last`` a model fails that takes ``x.view(len(x), -1)`` of a map, and operators of mmcv return wrong
    values: a model with such layers is not tried.

    Args:
        model: Runs in the contiguous format.
        memory_format: A key of ``FORMATS``.
        run: Calls the model.
    """
    if memory_format != "contiguous" and needs_contiguous_maps(model):
        lay_out_(model, torch.contiguous_format)
        return False
    try:
        lay_out_(model, FORMATS[memory_format])
        if memory_format != "contiguous":
            with traceable(model):
                run(model)
    except RuntimeError:
        lay_out_(model, torch.contiguous_format)
        return False
    return True
