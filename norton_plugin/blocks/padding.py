"""Padding rules of a convolution: how many pixels go to each side, and how they are filled."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from norton_plugin.errors import SurgeryError

PaddingRule = tuple[int, int] | Literal["same", "valid", "dynamic_same"]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def normalise_padding(padding: PaddingRule | int | str, padding_mode: str) -> PaddingRule:
    """Checks a padding argument and returns it as a pair or one of the named rules.

    Args:
        padding: Pixels (one or (vertical, horizontal)), ``"valid"``, ``"same"`` (torch: stride 1), or
            ``"dynamic_same"`` (TensorFlow: depends on the input's size; timm's ``Conv2dSame``).
        padding_mode: One of ``PADDING_MODES``.

    Raises:
        SurgeryError: Anything else.
    """
    if padding_mode not in PADDING_MODES:
        raise SurgeryError(f"padding mode {padding_mode!r} is unknown; expected one of {PADDING_MODES}")
    if isinstance(padding, str):
        if padding not in ("same", "valid", "dynamic_same"):
            raise SurgeryError(f"padding {padding!r} is unknown; expected 'same', 'valid' or 'dynamic_same'")
        return (0, 0) if padding == "valid" else padding  # type: ignore[return-value]
    pair = (padding, padding) if isinstance(padding, int) else tuple(int(p) for p in padding)
    if len(pair) != 2 or min(pair) < 0:
        raise SurgeryError(f"padding {padding!r} is not one or two non-negative numbers of pixels")
    return pair[0], pair[1]


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
    """Pads (B, C, H, W) by (left, right, top, bottom) pixels."""
    if not any(amounts):
        return x
    return F.pad(x, amounts, mode="constant" if padding_mode == "zeros" else padding_mode)
