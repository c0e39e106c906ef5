"""Padding rules of a convolution: how many pixels go to each side, and how they are filled."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from norton_plugin.blocks.arguments import choice, pair

PaddingRule = tuple[int, int] | Literal["same", "valid", "dynamic_same"]
NAMED_PADDINGS = ("same", "valid", "dynamic_same")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def normalise_padding(padding: PaddingRule | int | str, padding_mode: str) -> PaddingRule:
    """Check a padding argument and return it as a pair or one of the named rules.

    Args:
        padding: Pixels (one or (vertical, horizontal)), ``"valid"``, ``"same"`` (torch: stride 1), or
            ``"dynamic_same"`` (TensorFlow: depends on the input's size; timm's ``Conv2dSame``).
        padding_mode: One of ``PADDING_MODES``.

    Raises:
        SurgeryError: Anything else.
    """
    choice(padding_mode, "padding mode", PADDING_MODES)
    if isinstance(padding, str):
        choice(padding, "padding", NAMED_PADDINGS)
        return (0, 0) if padding == "valid" else padding  # type: ignore[return-value]
    return pair(padding, "padding", low=0)


def sides(
    padding: PaddingRule,
    *,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Pixels to add (left, right, top, bottom) to a map of ``size`` (H, W)."""
    amounts: list[int] = []
    for axis in (1, 0):
        if isinstance(padding, tuple):
            amounts += [padding[axis]] * 2
            continue
        span = dilation[axis] * (kernel_size[axis] - 1)
        if padding == "dynamic_same":
            outputs = math.ceil(size[axis] / stride[axis])
            span = max((outputs - 1) * stride[axis] + span + 1 - size[axis], 0)
        amounts += [span // 2, span - span // 2]
    return amounts[0], amounts[1], amounts[2], amounts[3]


def pad(x: Tensor, amounts: tuple[int, int, int, int], padding_mode: str) -> Tensor:
    """Pad (B, C, H, W) by (left, right, top, bottom) pixels."""
    if not any(amounts):
        return x
    return F.pad(x, amounts, mode="constant" if padding_mode == "zeros" else padding_mode)
