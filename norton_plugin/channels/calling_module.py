"""Whose code is running, where a module is used without being called in PyTorch's way."""

from __future__ import annotations

import sys
from collections.abc import Container

from torch import nn


def calling_module(model: Container[nn.Module]) -> nn.Module | None:
    """Return the module of a model whose method runs innermost, None where none does.

    A class may define ``__call__`` itself (mmdet's queries for denoising), and code may call another method than
    ``forward``: no hook hears of either.

    Args:
        model: The modules that count.
    """
    frame = sys._getframe(1)
    while frame is not None:
        own = frame.f_locals.get("self")
        if isinstance(own, nn.Module) and own in model:
            return own
        frame = frame.f_back  # type: ignore[assignment]
    return None
