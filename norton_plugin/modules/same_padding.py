"""The padding of TensorFlow, which depends on the size of the map."""

from __future__ import annotations

import torch
from torch import Tensor


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return the pixels that ``"dynamic_same"`` adds along one axis, on both sides together.

    ``torch.jit.trace`` shows sizes as tensors, ``torch.export`` as symbols, and ``torch.jit.script`` compiles this
    function: in none of them may Python choose by the size at hand, or that choice holds for every size.

    Args:
        size: Of the map, pixels.
        kernel_size: Of the convolution, pixels.
        stride: Pixels.
        dilation: Pixels.
    """
    outputs = (size + stride - 1) // stride
    span = (outputs - 1) * stride + dilation * (kernel_size - 1) + 1 - size
    if torch.jit.is_scripting():
        return max(span, 0)
    else:  # the compiler of torch.jit.script skips this branch, and no other form of it
        return _at_least_zero(span)


def _at_least_zero(span: int) -> int:
    if isinstance(span, Tensor):
        return span.clamp(min=0)
    return torch.sym_max(span, 0) if isinstance(span, torch.SymInt) else max(span, 0)
