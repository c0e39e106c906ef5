"""Convolutions that mix the kernel of each image from those of several experts: CondConv, as timm's ``CondConv2d``.

They hold each expert's kernel as one flat row, and their code builds one convolution of a batch with a group per image.
Followed is what that equals: the sum of the experts' maps, each times its share. A filter is that of all experts.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from norton_plugin.channels.layers import CurrentSizes, DenseEquivalent, LayerType, refresh_grouped_, register_layer
from norton_plugin.modules.same_padding import same_padding


class _ExpertConvolution(nn.Module):
    """Stands for timm's ``CondConv2d`` and layers that hold the same."""


def mixes_experts(module: object) -> bool:
    """Tell whether a module is a convolution whose kernel is mixed from flat ones of experts."""
    shape, experts = getattr(module, "weight_shape", None), getattr(module, "num_experts", None)
    parameters = getattr(module, "_parameters", None)  # of a script it is a mapping of another kind
    weight = parameters.get("weight") if isinstance(parameters, dict) else None
    if weight is None or type(shape) is not tuple or len(shape) != 4 or not hasattr(module, "dynamic_padding"):
        return False
    return tuple(weight.shape) == (experts, math.prod(shape))


def _weight(conv: Any) -> Tensor:
    """Return (N, C / groups, experts, Kh, Kw)."""
    return conv.weight.unflatten(1, conv.weight_shape).permute(1, 2, 0, 3, 4)


def _forward(conv: Any, weight: Tensor, x: Tensor, routing_weights: Tensor) -> Tensor:
    padding = conv.padding
    if conv.dynamic_padding:
        x, padding = F.pad(x, _same_padding(conv, x)), 0
    total: Any = 0
    for expert in range(conv.num_experts):
        bias = None if conv.bias is None else conv.bias[expert]
        kernel = weight[:, :, expert]
        mapped = F.conv2d(x, kernel, bias, conv.stride, padding, conv.dilation, conv.groups)
        total = mapped * routing_weights[:, expert, None, None, None] + total
    return total


def _same_padding(conv: Any, x: Tensor) -> list[int]:
    """Return what TensorFlow pads, the last axis first: what is left over goes to the end."""
    amounts: list[int] = []
    for axis in (1, 0):
        span = same_padding(int(x.shape[2 + axis]), conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis])
        amounts += [span // 2, span - span // 2]
    return amounts


def _refresh_(conv: Any, sizes: CurrentSizes) -> None:
    conv.out_channels, width = conv.weight_shape[:2]
    refresh_grouped_(conv, sizes, width)
    if conv.bias is not None:
        conv.bias_shape = (conv.out_channels,)


EXPERT_LAYER = register_layer(
    LayerType(
        _ExpertConvolution,
        produces=True,
        dense=DenseEquivalent(
            weight=_weight,
            forward=_forward,
            cuts={0: [("weight", 1, "weight_shape")], 1: [("weight", 2, "weight_shape")]},
        ),
        refresh=_refresh_,
        places=(1,),
        recognised_by=mixes_experts,
    )
)
