"""Equivalent ways to run one set of factors (docs/method.md, sections 5 and 6).

All compute the convolution with the weight ``W[n] = sum_r mix[n, r] head[k, r] o vertical[k, r] o horizontal[k, r]``,
k the cluster of filter n; where every filter has components of its own there is no mix, and k is n. They differ in
speed and memory alone. Kernels of one and of three axes have one
factor fewer, and one more (``depth``, before the others). The input is padded already, except for ``padding``, the
symmetric zero padding that the convolutions add themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from norton_plugin.blocks.convolutions import FUNCTIONS
from norton_plugin.cpd.factors import outer_products

Form = Literal["separable", "grouped", "depthwise", "dense"]
FORMS: tuple[Form, ...] = get_args(Form)
# What a block runs in that was told none of them: the form that its sizes and its input's ask for (``form_choice``).
AUTO: Literal["auto"] = "auto"
ChosenForm = Form | Literal["auto"]


class ConvGeometry(NamedTuple):
    """How the kernel moves over the map: pixels for each of its axes, (vertical, horizontal) for two."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def along(self, axis: int, groups: int) -> ConvGeometry:
        """Return how a kernel moves that has a length along one axis alone."""
        stride, padding, dilation = (
            tuple(own if place == axis else rest for place, own in enumerate(values))
            for values, rest in ((self.stride, 1), (self.padding, 0), (self.dilation, 1))
        )
        return ConvGeometry(stride, padding, dilation, groups)


class BlockFactors(NamedTuple):
    """Factors and bias of one block: K clusters of filters, R components in each.

    Attributes:
        head: (K, R, C), C the channels that one filter sees.
        kernel: For each axis of the kernel (K, R, Kx), (vertical, horizontal) for two; empty for a 1x1 kernel with a
            mix.
        axes: How many the kernel has.
        bias: (N,) or None.
        mix: (N, R), how filters are made of the components of their cluster; None where K = N and R are added up.
        slot: (N,) int64, where filters sit among K * S places (``blocks.clusters``); None where they are in order.
        cluster_size: S.
    """

    head: Tensor
    kernel: tuple[Tensor, ...]
    axes: int
    bias: Tensor | None
    mix: Tensor | None = None
    slot: Tensor | None = None
    cluster_size: int = 1

    def spatial_kernels(self) -> Tensor | None:
        """Return the rank-one spatial kernel of every component, (K, R, Kh, Kw); None for a 1x1 kernel."""
        return outer_products(self.kernel) if self.kernel else None

    def pointwise(self) -> Tensor:
        """Return the weight of the pointwise convolution to the components, (K * R, C, 1, 1)."""
        k, r, c = self.head.shape
        return self.head.reshape(k * r, c, *(1,) * self.axes)

    def along(self, axis: int) -> Tensor:
        """Return the weight of the depthwise convolution along one axis, (K * R, 1, Kh, 1) for the first of two."""
        k, r, length = self.kernel[axis].shape
        return self.kernel[axis].reshape(k * r, 1, *(length if place == axis else 1 for place in range(self.axes)))

    def summing(self) -> Tensor:
        """Return the weight of the last of these, in K groups, that also adds up R components: (K, R, 1, Kw)."""
        k, r, length = self.kernel[-1].shape
        return self.kernel[-1].reshape(k, r, *(1,) * (self.axes - 1), length)

    def mixing(self) -> Tensor:
        """Return the weight of the 1x1 convolution from components to the places of filters, (K * S, R, 1, 1)."""
        mix = self.placed(cast("Tensor", self.mix))
        return mix.view(*mix.shape, *(1,) * self.axes)

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
        return (self.mixing().unflatten(0, (len(self.head), -1)) * kernels[:, None]).flatten(0, 1)

    def weight(self) -> Tensor:
        """Rebuild the dense weight, (N, C, Kh, Kw)."""
        kernels = self.spatial_kernels()
        if self.mix is None and kernels is not None:
            axes = "dhw"[-self.axes :]
            return torch.einsum(f"nrc,nr{axes}->nc{axes}", self.head, kernels)
        k, r, c = self.head.shape
        basis = self.head.view(k, r, c, *(1,) * self.axes)
        if kernels is not None:
            basis = basis * kernels[:, :, None]
        mix = self.placed(cast("Tensor", self.mix)).view(k, -1, r)
        weight = (mix @ basis.flatten(2)).view(-1, *basis.shape[2:])
        return weight if self.slot is None else weight.index_select(0, self.slot)


def _pointwise(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Map (B, C_in, H, W) to (B, K * R, H, W), the channel of component r of cluster k at k * R + r."""
    convolve = FUNCTIONS[factors.axes]
    if not factors.kernel:  # nothing else moves over the map
        return convolve(x, factors.pointwise(), None, geometry.stride, geometry.padding, groups=geometry.groups)
    return convolve(x, factors.pointwise(), groups=geometry.groups)


def _mixed(x: Tensor, factors: BlockFactors) -> Tensor:
    """Map components (B, K * R, Ho, Wo) to filters (B, N, Ho, Wo), and add the bias."""
    x = FUNCTIONS[factors.axes](x, factors.mixing(), factors.placed_bias(), groups=factors.head.shape[0])
    return _ordered(x, factors)


def _ordered(x: Tensor, factors: BlockFactors) -> Tensor:
    """Bring filters from their places into their order."""
    # Counted from the end: an input without a batch axis is legal.
    return x if factors.slot is None else x.index_select(-1 - factors.axes, factors.slot)


def separable(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Pointwise, depthwise along each axis, the last with the sum over R, or depthwise too and the mix."""
    x = _pointwise(x, factors, geometry)
    if not factors.kernel:
        return _mixed(x, factors)
    convolve, components, last = FUNCTIONS[factors.axes], x.shape[-1 - factors.axes], factors.axes - 1
    for axis in range(last):
        x = convolve(x, factors.along(axis), None, *geometry.along(axis, components))
    if factors.mix is None:
        return convolve(x, factors.summing(), factors.bias, *geometry.along(last, len(factors.head)))
    return _mixed(convolve(x, factors.along(last), None, *geometry.along(last, components)), factors)


def grouped(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Pointwise, then one Kh x Kw convolution in K groups that also sums or mixes."""
    kernels = factors.mixing_kernels()
    x = _pointwise(x, factors, geometry)
    if kernels is None:
        return _mixed(x, factors)
    moved = geometry._replace(groups=factors.head.shape[0])
    return _ordered(FUNCTIONS[factors.axes](x, kernels, factors.placed_bias(), *moved), factors)


def depthwise(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Pointwise, a depthwise Kh x Kw convolution, then the sum over R or the mix."""
    kernels = factors.spatial_kernels()
    x = _pointwise(x, factors, geometry)
    if kernels is None:
        return _mixed(x, factors)
    k, r, *size = kernels.shape
    x = FUNCTIONS[factors.axes](x, kernels.reshape(k * r, 1, *size), None, *geometry._replace(groups=k * r))
    if factors.mix is not None:
        return _mixed(x, factors)
    channel = -1 - factors.axes
    x = x.unflatten(channel, (k, r)).sum(channel)
    return x if factors.bias is None else x + factors.bias.view(-1, *(1,) * factors.axes)


def dense(x: Tensor, factors: BlockFactors, geometry: ConvGeometry) -> Tensor:
    """Run one convolution with the rebuilt weight: dear in MACs, cheap in activation memory (for training)."""
    return FUNCTIONS[factors.axes](x, factors.weight(), factors.bias, *geometry)


FORM_FUNCTIONS: dict[Form, Callable[[Tensor, BlockFactors, ConvGeometry], Tensor]] = {
    "separable": separable,
    "grouped": grouped,
    "depthwise": depthwise,
    "dense": dense,
}
