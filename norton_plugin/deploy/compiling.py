"""``torch.compile`` for models that no longer learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Weights are constants of the compiled code: inductor folds what depends on them alone, and keeps those of convolutions
# packed as its kernels read them, where PyTorch packs them anew in every call.
_OPTIONS: dict[str, Any] = {"freezing": True}
# Why a detector is not compiled.
NOT_CALLED = (
    "torch.compile compiles what runs when a model is called; this one runs by methods of its own, such as predict of "
    "a detector, and would run as it is: call backbone.compile(), neck.compile() and so on yourself"
)


def compiled(model: nn.Module) -> Any:
    """Return a model that `torch.compile` compiles at its first call, which takes a minute.

    Weights become constants in calls without gradients (``torch.inference_mode``, ``torch.no_grad``): whether changes
    that are made to them afterwards are seen is not defined. Calls with gradients are compiled too, without that.

    Args:
        model: In evaluation mode; its methods and attributes are those of the result, too.
    """
    return torch.compile(model, options=_OPTIONS)
