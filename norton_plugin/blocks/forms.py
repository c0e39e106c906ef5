"""Equivalent ways to run one set of factors (docs/method.md, sections 5 and 6).

All compute the convolution with the weight ``W[n] = sum_r mix[n, r] head[k, r] o vertical[k, r] o horizontal[k, r]``,
k the cluster of filter n; where every filter has components of its own there is no mix, and k is n. They differ in
speed and memory alone. The input is padded already, except for ``padding``, the symmetric zero padding that the
convolutions add themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["separable", "grouped", "depthwise", "dense"]
FORMS: tuple[Form, ...] = get_args(Form)
# What a block runs in that was told none of them: the form that its sizes and its input's ask for (``form_choice``).
AUTO: Literal["auto"] = "auto"
ChosenForm = Form | Literal["auto"]


class ConvGeometry(NamedTuple):
    """How the kernel moves over the map: (vertical, horizontal) pairs, in pixels."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class BlockFactors(NamedTuple):
    """Factors and bias of one block: K clusters of filters, R components in each.

    Attributes:
        head: (K, R, C), C the channels that one filter sees.
        vertical: (K, R, Kh), None for a 1x1 kernel with a mix.
        horizontal: (K, R, Kw), None like it.
        bias: (N,) or None.
        mix: (N, R), how filters are made of the components of their cluster; None where K = N and R are added up.
        slot: (N,) int64, where filters sit among K * S places (``blocks.clusters``); None where they are in order.
        cluster_size: S.
    """

    head: Tensor
    vertical: Tensor | None
    horizontal: Tensor | None
    bias: Tensor | None
    mix: Tensor | None = None
    slot: Tensor | None = None
    cluster_size: int = 1

    def spatial_kernels(self) -> Tensor | None:
        """Return the rank-one spatial kernel of every component, (K, R, Kh, Kw); None for a 1x1 kernel."""
        if self.vertical is None or self.horizontal is None:
            return None
        return self.vertical.unsqueeze(-1) * self.horizontal.unsqueeze(-2)

    def placed(self, rows: Tensor) -> Tensor:
        """Put rows of filters, (N, ...), to their places, (K * S, ...); empty places are zero."""
        if self.slot is None:
            return rows
        places = self.head.shape[0] * self.cluster_size
        return rows.new_zeros(places, *rows.shape[1:]).index_copy(0, self.slot, rows)

    def placed_bias(self) -> Tensor | None:
        """Put the bias to the places of the filters, (K * S,); None without one."""
        return None if self.bias is None else self.placed(self.bias)

    def mixing_kernels(self) -> Tensor | None:
        """Return the kernels from R components to the places of their cluster, (K * S, R, Kh, Kw); None for 1x1."""
        kernels = self.spatial_kernels()
        if kernels is None or self.mix is None:
            return kernels
        k, r, _ = self.head.shape
        return (self.placed(self.mix).view(k, -1, r, 1, 1) * kernels[:, None]).flatten(0, 1)

    def weight(self) -> Tensor:
        """Rebuild the dense weight, (N, C, Kh, Kw)."""
        kernels = self.spatial_kernels()
        if self.mix is None and kernels is not None:
            return torch.einsum("nrc,nrhw->nchw", self.head, kernels)
        k, r, c = self.head.shape
        basis = self.head.view(k, r, c, 1, 1)
        if kernels is not None:
            basis = basis * kernels[:, :, None]
        mix = self.placed(cast("Tensor", self.mix)).view(k, -1, r)
        weight = (mix @ basis.flatten(2)).view(-1, *basis.shape[2:])
        return weight if self.slot is None else weight.index_select(0, self.slot)


def _pointwise(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Map (B, C_in, H, W) to (B, K * R, H, W), the channel of component r of cluster k at k * R + r."""
    k, r, c = factors.head.shape
    weight = factors.head.reshape(k * r, c, 1, 1)
    if factors.vertical is None:  # nothing else moves over the map
        return F.conv2d(x, weight, None, geometry.stride, geometry.padding, groups=geometry.groups)
    return F.conv2d(x, weight, groups=geometry.groups)


def _mixed(x: Tensor, factors: BlockFactors) -> Tensor:
    """Map components (B, K * R, Ho, Wo) to filters (B, N, Ho, Wo), and add the bias."""
    weight = factors.placed(cast("Tensor", factors.mix))[:, :, None, None]
    x = F.conv2d(x, weight, factors.placed_bias(), groups=factors.head.shape[0])
    return x if factors.slot is None else x.index_select(-3, factors.slot)  # an input without a batch axis is legal


def separable(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Pointwise, vertical depthwise, horizontal with the sum over R, or horizontal depthwise and the mix."""
    x = _pointwise(x, factors, geometry)
    if factors.vertical is None or factors.horizontal is None:
        return _mixed(x, factors)
    k, r, kh = factors.vertical.shape
    (sh, sw), (ph, pw), (dh, dw), _ = geometry
    vertical = factors.vertical.reshape(k * r, 1, kh, 1)
    x = F.conv2d(x, vertical, stride=(sh, 1), padding=(ph, 0), dilation=(dh, 1), groups=k * r)
    if factors.mix is None:
        horizontal = factors.horizontal.unsqueeze(-2)
        return F.conv2d(x, horizontal, factors.bias, (1, sw), (0, pw), (1, dw), k)
    horizontal = factors.horizontal.reshape(k * r, 1, 1, -1)
    return _mixed(F.conv2d(x, horizontal, None, (1, sw), (0, pw), (1, dw), k * r), factors)


def grouped(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Pointwise, then one Kh x Kw convolution in K groups that also sums or mixes."""
    kernels = factors.mixing_kernels()
    x = _pointwise(x, factors, geometry)
    if kernels is None:
        return _mixed(x, factors)
    stride, padding, dilation, _ = geometry
    x = F.conv2d(x, kernels, factors.placed_bias(), stride, padding, dilation, factors.head.shape[0])
    return x if factors.slot is None else x.index_select(-3, factors.slot)


def depthwise(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Pointwise, a depthwise Kh x Kw convolution, then the sum over R or the mix."""
    kernels = factors.spatial_kernels()
    x = _pointwise(x, factors, geometry)
    if kernels is None:
        return _mixed(x, factors)
    k, r, kh, kw = kernels.shape
    x = F.conv2d(
        x,
        kernels.reshape(k * r, 1, kh, kw),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        groups=k * r,
    )
    if factors.mix is not None:
        return _mixed(x, factors)
    x = x.unflatten(-3, (k, r)).sum(-3)  # counted from the end: an input without a batch axis is legal
    return x if factors.bias is None else x + factors.bias.view(-1, 1, 1)


def dense(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Run one convolution with the rebuilt weight: dear in MACs, cheap in activation memory (for training)."""
    return F.conv2d(x, factors.weight(), factors.bias, *geometry)


FORM_FUNCTIONS: dict[Form, Callable[[Tensor, BlockFactors, ConvGeometry], Tensor]] = {
    "separable": separable,
    "grouped": grouped,
    "depthwise": depthwise,
    "dense": dense,
}
