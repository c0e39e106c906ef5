"""The model that goes into a file: a lowered, folded copy in evaluation mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from norton_plugin.blocks import CPDBlock, CPDLinear
from norton_plugin.deploy import lower_block, prepare
from norton_plugin.modules.running import ForwardFunction

Forms = Literal["static", "measured"] | Mapping[str, str]


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
    if isinstance(model, CPDBlock | CPDLinear):
        return lower_block(model).eval()
    return prepare(model, example_inputs, forms=forms, forward_fn=forward_fn).model
