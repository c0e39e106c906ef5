"""Equivalent ways to run one set of factors (docs/method.md, section 5).

All compute the convolution with the weight ``W[n] = sum_r head[n, r] o vertical[n, r] o horizontal[n, r]``;
they differ in speed and memory alone. The input is padded already, except for ``padding``, the symmetric zero
padding that the convolutions add themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["separable", "grouped", "depthwise", "dense"]
FORMS: tuple[Form, ...] = get_args(Form)


class ConvGeometry(NamedTuple):
    """How the kernel moves over the map: (vertical, horizontal) pairs, in pixels."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class BlockFactors(NamedTuple):
    """Factors and bias of one block.

    Attributes:
        head: (N, R, C), C the channels that one filter sees.
        vertical: (N, R, Kh).
        horizontal: (N, R, Kw).
        bias: (N,) or None.
    """

    head: Tensor
    vertical: Tensor
    horizontal: Tensor
    bias: Tensor | None


def _pointwise(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Map (B, C_in, H, W) to (B, N * R, H, W), the channel of component r of filter n at n * R + r."""
    n, r, c = factors.head.shape
    return F.conv2d(x, factors.head.reshape(n * r, c, 1, 1), groups=geometry.groups)


def _spatial_kernels(factors: BlockFactors) -> Tensor:
    """Return the rank-one spatial kernel of every component: (N, R, Kh, Kw)."""
    return factors.vertical.unsqueeze(-1) * factors.horizontal.unsqueeze(-2)


def separable(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Three convolutions: pointwise, vertical depthwise, horizontal with the sum over R."""
    n, r, kh = factors.vertical.shape
    (sh, sw), (ph, pw), (dh, dw), _ = geometry
    x = _pointwise(x, factors, geometry)
    vertical = factors.vertical.reshape(n * r, 1, kh, 1)
    x = F.conv2d(x, vertical, stride=(sh, 1), padding=(ph, 0), dilation=(dh, 1), groups=n * r)
    horizontal = factors.horizontal.unsqueeze(-2)
    return F.conv2d(x, horizontal, factors.bias, (1, sw), (0, pw), (1, dw), n)


def grouped(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Pointwise, then one grouped Kh x Kw convolution that also sums over R."""
    x = _pointwise(x, factors, geometry)
    kernels = _spatial_kernels(factors)
    return F.conv2d(x, kernels, factors.bias, geometry.stride, geometry.padding, geometry.dilation, kernels.shape[0])


def depthwise(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Pointwise, a depthwise Kh x Kw convolution, then the sum over R."""
    kernels = _spatial_kernels(factors)
    n, r, kh, kw = kernels.shape
    x = _pointwise(x, factors, geometry)
    x = F.conv2d(
        x,
        kernels.reshape(n * r, 1, kh, kw),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        groups=n * r,
    )
    x = x.unflatten(-3, (n, r)).sum(-3)  # counted from the end: an input without a batch axis is legal
    return x if factors.bias is None else x + factors.bias.view(-1, 1, 1)


def dense(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Run one convolution with the rebuilt weight: dear in MACs, cheap in activation memory (for training)."""
    weight = torch.einsum("nrc,nrhw->nchw", factors.head, _spatial_kernels(factors))
    return F.conv2d(x, weight, factors.bias, *geometry)


FORM_FUNCTIONS: dict[Form, Callable[[Tensor, BlockFactors, ConvGeometry], Tensor]] = {
    "separable": separable,
    "grouped": grouped,
    "depthwise": depthwise,
    "dense": dense,
}
