"""Memory formats of a model's weights, and whether the model runs in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from norton_plugin.modules.running import traceable

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def lay_out_(model: nn.Module, memory: torch.memory_format) -> nn.Module:
    """Lay out all weights of convolutions in a memory format, in place."""
    return model.to(memory_format=memory)  # type: ignore[call-overload]


def runs_in_(model: nn.Module, memory_format: str, run: Callable[[nn.Module], Any]) -> bool:
    """Lay out a model in place and tell whether it runs so; where it does not, it is contiguous afterwards.

    In ``channels_last`` a model fails that takes ``x.view(len(x), -1)`` of a map, or that has weights of five axes.

    Args:
        model: Runs in the contiguous format.
        memory_format: A key of ``FORMATS``.
        run: Calls the model.
    """
    try:
        lay_out_(model, FORMATS[memory_format])
        if memory_format != "contiguous":
            with traceable(model):
                run(model)
    except RuntimeError:
        lay_out_(model, torch.contiguous_format)
        return False
    return True
