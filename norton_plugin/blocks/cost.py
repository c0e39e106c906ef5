"""Closed-form cost of a convolution and of its decomposition (docs/method.md, section 1)."""

from __future__ import annotations

import math
from typing import NamedTuple

Size = tuple[int, ...]


class ConvCost(NamedTuple):
    """Cost of one layer.

    Attributes:
        macs: Multiply-accumulates per image.
        parameters: Stored numbers, the bias left out.
    """

    macs: int
    parameters: int


def conv_cost(filters: int, channels: int, kernel_size: Size, *, output_size: Size = ()) -> ConvCost:
    """Return the cost of a dense convolution: ``N C Kh Kw Ho Wo`` MACs, ``N C Kh Kw`` parameters.

    Args:
        filters: N.
        channels: C, the channels that one filter sees (``in_channels / groups``).
        kernel_size: (Kh, Kw), or the lengths of another number of axes; the sizes of maps alike.
        output_size: (Ho, Wo); one pixel by default.
    """
    weights = filters * channels * math.prod(kernel_size)
    return ConvCost(weights * math.prod(output_size), weights)


def cpd_cost(
    filters: int, channels: int, kernel_size: Size, rank: int, *, input_size: Size = (), output_size: Size = ()
) -> ConvCost:
    """Return the cost of the form of one convolution per axis: ``R N (C Hi Wi + Kh Ho Wi + Kw Ho Wo)`` MACs.

    The pointwise step runs before the stride, so it sees the whole input map; each other step strides along its axis.

    Args:
        filters: N.
        channels: C, the channels that one filter sees.
        kernel_size: (Kh, Kw), or the lengths of another number of axes; the sizes of maps alike.
        rank: R.
        input_size: (Hi, Wi); one pixel by default.
        output_size: (Ho, Wo); one pixel by default.

    Returns:
        MACs, and ``R N (C + Kh + Kw)`` parameters.
    """
    macs = rank * filters * (channels * math.prod(input_size) + _line_macs(kernel_size, input_size, output_size))
    return ConvCost(macs, rank * filters * (channels + sum(kernel_size)))


def _line_macs(kernel_size: Size, input_size: Size, output_size: Size) -> int:
    """Return the MACs of one component in the steps along the axes, one after the other: ``Kh Ho Wi + Kw Ho Wo``."""
    return sum(
        length * math.prod(output_size[: axis + 1]) * math.prod(input_size[axis + 1 :])
        for axis, length in enumerate(kernel_size)
    )


def break_even_rank(
    channels: int,
    kernel_size: Size,
    *,
    stride: Size = (),
    input_size: Size | None = None,
    output_size: Size | None = None,
) -> int:
    """Return the largest rank at which the decomposed layer needs fewer MACs than the dense one.

    For a 3x3 kernel at stride 1 this is just under ``9C / (C + 6)``, at stride 2 just under ``9C / (4C + 9)``.

    Args:
        channels: C, the channels that one filter sees.
        kernel_size: (Kh, Kw), or the lengths of another number of axes; the sizes of maps alike.
        stride: Used to estimate the ratio of input to output map where the sizes are unknown.
        input_size: (Hi, Wi), or None for ``stride``.
        output_size: (Ho, Wo), or None for one pixel.

    Returns:
        The rank, 0 where no rank saves anything.
    """
    if input_size is None or output_size is None:
        input_size, output_size = stride, ()
    dense = conv_cost(1, channels, kernel_size, output_size=output_size).macs
    per_rank = cpd_cost(1, channels, kernel_size, 1, input_size=input_size, output_size=output_size).macs
    return max(0, math.ceil(dense / per_rank) - 1)


def coupled_cost(
    filters: int,
    channels: int,
    kernel_size: Size,
    components: int,
    *,
    clusters: int = 1,
    input_size: Size = (),
    output_size: Size = (),
) -> ConvCost:
    """Return the cost of filters that share components: pointwise, a depthwise step for each axis, and the mix.

    ``M (C Hi Wi + Kh Ho Wi + Kw Ho Wo) + N M / K Ho Wo`` MACs: the mix runs after the stride. A 1x1 kernel has no
    depthwise steps, and all of it runs after the stride. Where clusters are of unequal size the smaller ones count
    as large as the largest.

    Args:
        filters: N.
        channels: C, the channels that one filter sees.
        kernel_size: (Kh, Kw), or the lengths of another number of axes; the sizes of maps alike.
        components: M, of all clusters.
        clusters: K.
        input_size: (Hi, Wi); one pixel by default.
        output_size: (Ho, Wo); one pixel by default.

    Returns:
        MACs, and ``M (C + Kh + Kw) + N M / K`` parameters.
    """
    pixels = math.prod(output_size)
    rank, places = components // clusters, clusters * -(-filters // clusters)
    mixed = places * rank * pixels
    if max(kernel_size) == 1:
        return ConvCost(components * channels * pixels + mixed, components * channels + filters * rank)
    macs = components * (channels * math.prod(input_size) + _line_macs(kernel_size, input_size, output_size)) + mixed
    return ConvCost(macs, components * (channels + sum(kernel_size)) + filters * rank)


def spatial_cost(
    filters: int,
    channels: int,
    kernel_size: Size,
    components: int,
    *,
    groups: int = 1,
    input_size: Size = (1, 1),
    output_size: Size = (1, 1),
) -> ConvCost:
    """Return the cost of a spatial SVD: ``M C Kh Ho Wi + N M / G Kw Ho Wo`` MACs.

    The vertical convolution takes the vertical stride, so the horizontal one sees the whole width of the map.

    Args:
        filters: N.
        channels: C, the channels that one filter sees.
        kernel_size: (Kh, Kw).
        components: M, of all channel groups.
        groups: G.
        input_size: (Hi, Wi).
        output_size: (Ho, Wo).

    Returns:
        MACs, and ``M C Kh + N M / G Kw`` parameters.
    """
    (kh, kw), (_, wi), (ho, wo) = kernel_size, input_size, output_size
    vertical, horizontal = components * channels * kh, filters * (components // groups) * kw
    return ConvCost(vertical * ho * wi + horizontal * ho * wo, vertical + horizontal)
