"""Closed-form cost of a convolution and of its decomposition (docs/method.md, section 1)."""

from __future__ import annotations

import math
from typing import NamedTuple


class ConvCost(NamedTuple):
    """Cost of one layer.

    Attributes:
        macs: Multiply-accumulates per image.
        parameters: Stored numbers, the bias left out.
    """

    macs: int
    parameters: int


def conv_cost(
    filters: int,
    channels: int,
    kernel_size: tuple[int, int],
    *,
    output_size: tuple[int, int] = (1, 1),
) -> ConvCost:
    """Return the cost of a dense convolution: ``N C Kh Kw Ho Wo`` MACs, ``N C Kh Kw`` parameters.

    Args:
        filters: N.
        channels: C, the channels that one filter sees (``in_channels / groups``).
        kernel_size: (Kh, Kw).
        output_size: (Ho, Wo).
    """
    weights = filters * channels * math.prod(kernel_size)
    return ConvCost(weights * math.prod(output_size), weights)


def cpd_cost(
    filters: int,
    channels: int,
    kernel_size: tuple[int, int],
    rank: int,
    *,
    input_size: tuple[int, int] = (1, 1),
    output_size: tuple[int, int] = (1, 1),
) -> ConvCost:
    """Return the cost of the three-convolution form: ``R N (C Hi Wi + Kh Ho Wi + Kw Ho Wo)`` MACs.

    The pointwise step runs before the stride, so it sees the whole input map.

    Args:
        filters: N.
        channels: C, the channels that one filter sees.
        kernel_size: (Kh, Kw).
        rank: R.
        input_size: (Hi, Wi).
        output_size: (Ho, Wo).

    Returns:
        MACs, and ``R N (C + Kh + Kw)`` parameters.
    """
    (kh, kw), (hi, wi), (ho, wo) = kernel_size, input_size, output_size
    macs = rank * filters * (channels * hi * wi + kh * ho * wi + kw * ho * wo)
    return ConvCost(macs, rank * filters * (channels + kh + kw))


def break_even_rank(
    channels: int,
    kernel_size: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    input_size: tuple[int, int] | None = None,
    output_size: tuple[int, int] | None = None,
) -> int:
    """Return the largest rank at which the decomposed layer needs fewer MACs than the dense one.

    For a 3x3 kernel at stride 1 this is just under ``9C / (C + 6)``, at stride 2 just under ``9C / (4C + 9)``.

    Args:
        channels: C, the channels that one filter sees.
        kernel_size: (Kh, Kw).
        stride: Used to estimate the ratio of input to output map where the sizes are unknown.
        input_size: (Hi, Wi), or None for ``stride``.
        output_size: (Ho, Wo), or None for (1, 1).

    Returns:
        The rank, 0 where no rank saves anything.
    """
    if input_size is None or output_size is None:
        input_size, output_size = stride, (1, 1)
    dense = conv_cost(1, channels, kernel_size, output_size=output_size).macs
    per_rank = cpd_cost(1, channels, kernel_size, 1, input_size=input_size, output_size=output_size).macs
    return max(0, math.ceil(dense / per_rank) - 1)


def coupled_cost(
    filters: int,
    channels: int,
    kernel_size: tuple[int, int],
    components: int,
    *,
    clusters: int = 1,
    input_size: tuple[int, int] = (1, 1),
    output_size: tuple[int, int] = (1, 1),
) -> ConvCost:
    """Return the cost of filters that share components: pointwise, two depthwise steps, and the mix.

    ``M (C Hi Wi + Kh Ho Wi + Kw Ho Wo) + N M / K Ho Wo`` MACs: the mix runs after the stride. A 1x1 kernel has no
    depthwise steps, and all of it runs after the stride. Where clusters are of unequal size the smaller ones count
    as large as the largest.

    Args:
        filters: N.
        channels: C, the channels that one filter sees.
        kernel_size: (Kh, Kw).
        components: M, of all clusters.
        clusters: K.
        input_size: (Hi, Wi).
        output_size: (Ho, Wo).

    Returns:
        MACs, and ``M (C + Kh + Kw) + N M / K`` parameters.
    """
    (kh, kw), (hi, wi), (ho, wo) = kernel_size, input_size, output_size
    rank, places = components // clusters, clusters * -(-filters // clusters)
    mixed = places * rank * ho * wo
    if kernel_size == (1, 1):
        return ConvCost(components * channels * ho * wo + mixed, components * channels + filters * rank)
    macs = components * (channels * hi * wi + kh * ho * wi + kw * ho * wo) + mixed
    return ConvCost(macs, components * (channels + kh + kw) + filters * rank)


def spatial_cost(
    filters: int,
    channels: int,
    kernel_size: tuple[int, int],
    components: int,
    *,
    groups: int = 1,
    input_size: tuple[int, int] = (1, 1),
    output_size: tuple[int, int] = (1, 1),
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
