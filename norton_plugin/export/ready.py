"""The model that goes into a file: a lowered, folded copy in evaluation mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.deploy import lower_block, prepare
from norton_plugin.deploy.choices import Forms
from norton_plugin.modules.running import ForwardFunction


def inference_copy(
    model: nn.Module, example_inputs: Any, *, forms: Forms = "static", forward_fn: ForwardFunction | None = None
) -> nn.Module:
    """Return a copy whose blocks are ordinary layers, with norms folded into them.

    Args:
        model: Left as it is.
        example_inputs: What it runs on.
        forms: As of ``prepare``.
        forward_fn: As of ``prepare``.
    """
    if isinstance(model, ConvBlock | CPDLinear):
        return lower_block(model).eval()
    prepared = prepare(model, example_inputs, forms=forms, forward_fn=forward_fn).model
    plain: nn.Module = getattr(prepared, "_orig_mod", prepared)  # of torch.compile, which is no part of a file
    # files have a layout of their own
    return plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
