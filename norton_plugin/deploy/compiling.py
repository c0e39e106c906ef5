"""``torch.compile`` for models that no longer learn."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

# Why a detector is not compiled.
NOT_CALLED = (
    "torch.compile compiles what runs when a model is called; this one runs by methods of its own, such as predict of "
    "a detector, and would run as it is: call backbone.compile(), neck.compile() and so on yourself"
)


def compiled(model: nn.Module) -> Any:
    """Return a model that `torch.compile` compiles at its first call, which takes a minute.

    In calls without gradients (``torch.inference_mode``, ``torch.no_grad``) weights are constants of the compiled code
    (inductor's freezing): it folds what depends on them alone, and keeps those of convolutions packed as its kernels
    read them, where PyTorch packs them anew in every call. So do not change weights after the first call. Calls with
    gradients are compiled too, without that.

    Args:
        model: In evaluation mode.

    Returns:
        torch's ``OptimizedModule``; the model itself is its ``_orig_mod``.
    """
    fast: Any = torch.compile(model)
    inner = fast.forward

    # Both the tracer and inductor read the setting, whenever an input of a new shape makes them compile again. As an
    # option of torch.compile it would reach inductor alone, which finds no constants then.
    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch._inductor.config.patch(freezing=True):
            return inner(*args, **kwargs)

    fast.forward = forward
    return fast
