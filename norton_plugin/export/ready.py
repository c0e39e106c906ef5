"""The model that goes into a file: a lowered copy in evaluation mode."""

from __future__ import annotations

from typing import Any

from torch import nn

from norton_plugin.blocks import CPDBlock, CPDLinear
from norton_plugin.deploy import lower_, lower_block
from norton_plugin.modules.duplication import duplicate


def inference_copy(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Return a copy whose blocks are ordinary layers.

    Args:
        model: Left as it is.
        example_inputs: What it runs on.
    """
    copied = duplicate(model).eval()
    if isinstance(copied, CPDBlock | CPDLinear):
        return lower_block(copied)
    if any(isinstance(module, CPDBlock | CPDLinear) for module in copied.modules()):
        lower_(copied)
    return copied
