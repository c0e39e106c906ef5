"""mmcv's compiled operators, run as operators that PyTorch sees.

mmcv binds its operators past PyTorch's dispatcher: a trace learns neither what they read nor what they made, and some
exist on CUDA alone. Here the same values are computed by operators of torch and torchvision.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops.carafe import CARAFEFunction, CARAFENaiveFunction
from mmcv.ops.deform_conv import DeformConv2dFunction
from mmcv.ops.masked_conv import MaskedConv2dFunction
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction
from mmcv.ops.roi_align import RoIAlignFunction
from torch import Tensor
from torchvision.ops import deform_conv2d, roi_align

Sizes = int | tuple[int, int]


@contextmanager
def visible_operators() -> Iterator[None]:
    """While entered, deformable and masked convolutions, CARAFE and RoIAlign of mmcv compute by operators of PyTorch.

    With gradients mmcv's own run: the others save nothing for a backward pass. Runs that are paused inside may end in
    any order (``calibration.lockstep``): mmcv's own are back when the last has left.
    """
    if torch.is_grad_enabled():
        yield
        return
    _count_(1)
    try:
        yield
    finally:
        _count_(-1)


def _count_(change: int) -> None:
    """Count who is inside, and set the operators by whether anyone is."""
    global _inside
    with _LOCK:
        _inside += change
        for function, own in _OWN.items():
            function.forward = staticmethod(_FORWARDS[function] if _inside else own)


def _deformable(
    _: Any,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Take the place of ``DeformConv2dFunction.forward``: the groups follow from the sizes of x, weight and offset."""
    [offset] = _as_read([offset], x, weight, (stride, padding, dilation))
    return deform_conv2d(x.type_as(offset), offset, weight.type_as(offset), None, stride, padding, dilation)


def _modulated(
    _: Any,
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Take the place of ``ModulatedDeformConv2dFunction.forward``."""
    offset, mask = _as_read([offset, mask], x, weight, (stride, padding, dilation))
    own = None if bias is None else bias.type_as(offset)
    kernel = weight.type_as(offset)
    return deform_conv2d(x.type_as(offset), offset, kernel, own, stride, padding, dilation, mask)


def _as_read(fields: list[Tensor], x: Tensor, weight: Tensor, geometry: tuple[Sizes, Sizes, Sizes]) -> list[Tensor]:
    """Return offsets and modulation as mmcv reads them: from the start of their memory, in the size of the output.

    DyHead gives those of a map of twice the size to one of its convolutions.
    """
    output = []
    for d in (0, 1):
        stride, padding, dilation = (value if isinstance(value, int) else value[d] for value in geometry)
        output.append((x.shape[2 + d] + 2 * padding - dilation * (weight.shape[2 + d] - 1) - 1) // stride + 1)
    if list(fields[0].shape[2:]) == output:
        return fields
    shapes = [(*field.shape[:2], *output) for field in fields]
    return [field.flatten()[: math.prod(shape)].view(shape) for field, shape in zip(fields, shapes, strict=True)]


def _masked(
    _: Any, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, padding: Sizes = 0, stride: Sizes = 1
) -> Tensor:
    """Take the place of ``MaskedConv2dFunction.forward``: zero where the mask (1, H, W) is not positive."""
    return F.conv2d(x, weight, bias, stride, padding) * (mask > 0).unsqueeze(1).to(x.dtype)


def _aligned(
    context: Any,
    features: Tensor,
    regions: Tensor,
    output_size: Sizes,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """Take the place of ``RoIAlignFunction.forward``; torchvision has no mode ``max``, which stays mmcv's own.

    That one reads maps as if they were contiguous.
    """
    settings = output_size, spatial_scale, sampling_ratio
    if pool_mode != "avg":
        return _OWN[RoIAlignFunction](context, features.contiguous(), regions, *settings, pool_mode, aligned)
    return roi_align(features, regions, *settings, aligned)


def _reassembled(_: Any, features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale: int) -> Tensor:
    """Take the place of ``CARAFEFunction.forward`` (Wang et al., ICCV 2019).

    Every pixel of the larger map is a sum over the window around its place in the smaller one, each tap times a weight
    of the pixel's own. Outside of the map there are zeros. Channels of a group have the weights in common.

    Args:
        features: (N, C, H, W).
        masks: (N, groups * k * k, H * scale, W * scale), the taps of each group row by row.
        kernel_size: k, odd.
        group_size: Groups.
        scale: Of the map.

    Returns:
        (N, C, H * scale, W * scale).
    """
    (height, width), taps = features.shape[2:], kernel_size**2
    padded = F.pad(features, [kernel_size // 2] * 4)
    total: Any = 0
    for tap in range(taps):
        top, left = divmod(tap, kernel_size)
        shifted = F.interpolate(padded[:, :, top : top + height, left : left + width], scale_factor=scale)
        if group_size == 1:
            total = shifted * masks[:, tap, None] + total
        else:
            grouped = shifted.unflatten(1, (group_size, -1))
            total = (grouped * masks[:, tap::taps, None]).flatten(1, 2) + total
    return total


_FORWARDS: dict[Any, Callable[..., Tensor]] = {
    CARAFEFunction: _reassembled,
    CARAFENaiveFunction: _reassembled,
    DeformConv2dFunction: _deformable,
    ModulatedDeformConv2dFunction: _modulated,
    MaskedConv2dFunction: _masked,
    RoIAlignFunction: _aligned,
}
_OWN: dict[Any, Callable[..., Tensor]] = {function: function.forward for function in _FORWARDS}
_LOCK = threading.Lock()
_inside = 0
