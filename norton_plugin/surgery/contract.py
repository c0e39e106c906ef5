"""What a convolution computes, read off its module, or the reason why that cannot be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.blocks.convolutions import LAYERS
from norton_plugin.blocks.padding import PaddingRule
from norton_plugin.channels.expert_layers import mixes_experts
from norton_plugin.errors import DecompositionError
from norton_plugin.reasons import Cause, Reason
from norton_plugin.surgery.computed_weight import why_computed


@dataclass(frozen=True)
class ConvContract:
    """Everything a replacement of a convolution has to keep.

    Attributes:
        weight: The effective weight (N, C, Kh, Kw), any standardisation applied, detached. Kernels of 1-D and 3-D
            convolutions have one axis or three; what follows, and sizes of maps, have as many.
        bias: (N,) or None, detached.
        in_channels: Channels of the input (C times groups).
        stride: (vertical, horizontal) in pixels.
        padding: As ``blocks.padding`` names it.
        dilation: (vertical, horizontal).
        groups: Channel groups.
        padding_mode: As of ``nn.Conv2d``.
    """

    weight: Tensor
    bias: Tensor | None
    in_channels: int
    stride: tuple[int, ...]
    padding: PaddingRule | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """(Kh, Kw)."""
        return tuple(self.weight.shape[2:])


@dataclass(frozen=True)
class LinearContract:
    """Everything a replacement of a Linear layer has to keep.

    Attributes:
        weight: (N, C, 1, 1), detached: the weight of the 1x1 convolution that the layer equals.
        bias: (N,) or None, detached.
    """

    weight: Tensor
    bias: Tensor | None


def _standardised(conv: Any) -> Tensor:
    """Return the weight of timm's StdConv2d and ScaledStdConv2d: zero mean and unit variance per filter.

    It is multiplied by a gain where there is one.
    """
    gain, eps = getattr(conv, "gain", None), float(conv.eps)
    scale = None if gain is None else (gain * conv.scale).reshape(-1)
    rows = conv.weight.reshape(1, conv.out_channels, -1)
    return F.batch_norm(rows, None, None, weight=scale, training=True, momentum=0.0, eps=eps).reshape_as(conv.weight)


def _weight_standardised_mmcv(conv: Any) -> Tensor:
    """Return the weight of mmcv's ConvWS2d: the same, but eps is added to the unbiased standard deviation."""
    rows = conv.weight.flatten(1)
    eps = float(conv.eps)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + eps)
    return rows.reshape_as(conv.weight)


# Subclasses with their own forward, for which the effective weight and padding are known exactly.
_PLAIN = {"mmcv.cnn.bricks.wrappers.Conv2d"}
_DYNAMIC_SAME = {"timm.layers.conv2d_same.Conv2dSame"}
_STANDARDISED = {f"timm.layers.std_conv.{name}" for name in ("StdConv2d", "ScaledStdConv2d")}
_STANDARDISED_SAME = {f"timm.layers.std_conv.{name}" for name in ("StdConv2dSame", "ScaledStdConv2dSame")}
_WEIGHT_STANDARDISED = {"mmcv.cnn.bricks.conv_ws.ConvWS2d"}


def read_contract(module: nn.Module) -> ConvContract | Cause:
    """Read a convolution, or say why it is not one this package can replace.

    Args:
        module: Any module.

    Returns:
        The contract, or the reason.
    """
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if mixes_experts(module):
            return Reason.MIXED_KERNEL.because()
        return Reason.NOT_A_CONVOLUTION.because(module=type(module).__name__)
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return why_computed(module) or Reason.HAS_HOOKS.because()
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    plain = LAYERS[len(module.kernel_size)]
    own_forward = type(module).forward is not plain.forward
    own_forward |= type(module)._conv_forward is not plain._conv_forward
    weight, padding = module.weight, module.padding
    if kind in _STANDARDISED | _STANDARDISED_SAME:
        weight = _standardised(module)
        if kind in _STANDARDISED_SAME and module.same_pad:
            padding = "dynamic_same"
    elif kind in _WEIGHT_STANDARDISED:
        weight = _weight_standardised_mmcv(module)
    elif kind in _DYNAMIC_SAME:
        padding = "dynamic_same"
    elif own_forward and kind not in _PLAIN:
        return Reason.OWN_FORWARD.because(module=type(module).__name__)
    if module.weight.is_meta:
        return Reason.ON_META.because()
    return ConvContract(
        weight=weight.detach(),
        bias=None if module.bias is None else module.bias.detach(),
        in_channels=module.in_channels,
        stride=module.stride,
        padding=padding,
        dilation=module.dilation,
        groups=module.groups,
        padding_mode=module.padding_mode,
    )


# A subclass may be read by other code than its own forward, as nn.MultiheadAttention reads its out_proj.
_PLAIN_LINEAR = {"torch.nn.modules.linear.Linear", "mmcv.cnn.bricks.wrappers.Linear"}


def read_linear(module: nn.Linear) -> LinearContract | Cause:
    """Read a Linear layer, or say why it is not one this package can replace."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return why_computed(module) or Reason.HAS_HOOKS.because()
    if f"{type(module).__module__}.{type(module).__qualname__}" not in _PLAIN_LINEAR:
        return Reason.OWN_FORWARD.because(module=type(module).__name__)
    if (computed := why_computed(module)) is not None:
        return computed
    if module.weight.is_meta:
        return Reason.ON_META.because()
    bias = None if module.bias is None else module.bias.detach()
    return LinearContract(module.weight.detach()[:, :, None, None], bias)


def check_finite(name: str, weight: Tensor) -> None:
    """Raise where a weight holds NaN or infinity.

    Raises:
        DecompositionError: Some value is not finite.
    """
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise DecompositionError(
            f"the weight of {name} holds {bad} values that are NaN or infinite; load a sound checkpoint first"
        )
