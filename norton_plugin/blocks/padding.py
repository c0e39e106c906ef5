"""Padding rules of a convolution: how many pixels go to each side, and how they are filled."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from norton_plugin.blocks.arguments import choice, per_axis
from norton_plugin.modules.same_padding import same_padding

PaddingRule = tuple[int, ...] | Literal["same", "valid", "dynamic_same"]
NAMED_PADDINGS = ("same", "valid", "dynamic_same")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def normalise_padding(padding: PaddingRule | int | str, padding_mode: str, *, axes: int = 2) -> PaddingRule:
    """Check a padding argument and return it as pixels of every axis or one of the named rules.

    Args:
        padding: Pixels (one or (vertical, horizontal)), ``"valid"``, ``"same"`` (torch: stride 1), or
            ``"dynamic_same"`` (TensorFlow: depends on the input's size; timm's ``Conv2dSame``).
        padding_mode: One of ``PADDING_MODES``.
        axes: How many the kernel has.

    Raises:
        SurgeryError: Anything else.
    """
    choice(padding_mode, "padding mode", PADDING_MODES)
    if isinstance(padding, str):
        choice(padding, "padding", NAMED_PADDINGS)
        return (0,) * axes if padding == "valid" else padding  # type: ignore[return-value]
    return per_axis(padding, "padding", axes=axes, low=0)


def sides(
    padding: PaddingRule,
    *,
    size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """Pixels to add (left, right, top, bottom) to a map of ``size`` (H, W): the last axis first, as for ``F.pad``."""
    amounts: list[int] = []
    for axis in reversed(range(len(size))):
        if isinstance(padding, tuple):
            amounts += [padding[axis]] * 2
            continue
        span = dilation[axis] * (kernel_size[axis] - 1)
        if padding == "dynamic_same":
            span = same_padding(size[axis], kernel_size[axis], stride[axis], dilation[axis])
        amounts += [span // 2, span - span // 2]
    return tuple(amounts)


def pad(x: Tensor, amounts: tuple[int, ...], padding_mode: str) -> Tensor:
    """Pad (B, C, H, W) by (left, right, top, bottom) pixels, maps of other axes alike."""
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if not recorded and not any(amounts):
        return x
    return F.pad(x, amounts, mode="constant" if padding_mode == "zeros" else padding_mode)
