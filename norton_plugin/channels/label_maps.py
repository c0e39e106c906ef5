"""Label maps: to which channel every element of a tensor belongs.

A *label map* is an int64 tensor with the shape of the tensor that it describes. It holds one label per element, and 0
where the element belongs to no channel. Along dimensions in which the labels do not vary it has stride 0, so that it
needs little memory: the map of a (64, 512, 28, 28) activation stores 512 numbers.

An element can belong to several channels at once: an entry of a weight belongs to a filter and to an input channel.
``ChannelLabels`` therefore holds any number of maps. An element disappears as soon as one of its channels is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ChannelLabels(NamedTuple):
    """All that the trace knows about the channels of one tensor.

    Attributes:
        maps: Label maps, each of the tensor's shape.
        constant: Whether the tensor is computed from parameters and constants alone.
        producer_rows: Label maps: the rows of layers' weights (their filters) that computed each element, as long as
            every element is a sum of one multiple of an output of each; none afterwards. These are the labels before
            any union, so that the rows can be rescaled.
        scores: Whether the tensor holds products of activations summed over their channels, as attention scores are:
            its dimensions are positions and heads.
        stays: Label maps of channels that had to stay, and that are not followed on from here: where the tensor is an
            output of the model, so are they.
        emptied: Label vectors of the channels that the tensor was computed from, where it has no elements.
    """

    maps: tuple[Tensor, ...] = ()
    constant: bool = True
    producer_rows: tuple[Tensor, ...] = ()
    scores: bool = False
    stays: tuple[Tensor, ...] = ()
    emptied: tuple[Tensor, ...] = ()


def varying(label_map: Tensor) -> list[int]:
    """Return the dimensions along which the labels of a compact map vary."""
    return [d for d in range(label_map.dim()) if label_map.shape[d] > 1 and label_map.stride(d) != 0]


def core(label_map: Tensor) -> Tensor:
    """Return the map with size 1 along all dimensions of stride 0."""
    for d in range(label_map.dim()):
        if label_map.stride(d) == 0 and label_map.shape[d] > 1:
            label_map = label_map.narrow(d, 0, 1)
    return label_map


def compact(label_map: Tensor) -> Tensor:
    """Return the same map with stride 0 wherever its labels do not vary."""
    if label_map.numel() == 0:
        return label_map
    small = core(label_map)
    for d in varying(small):
        head = small.narrow(d, 0, 1)
        if bool((small == head).all()):
            small = head
    return small.contiguous().expand(label_map.shape)


def along(label_map: Tensor, dim: int) -> Tensor:
    """Return the labels along one dimension, (size,), at position 0 of all other dimensions."""
    dim %= label_map.dim()
    for d in range(label_map.dim() - 1, -1, -1):
        if d != dim:
            label_map = label_map.select(d, 0)
    return label_map


def spread(labels: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Return a map of this shape whose labels vary along one dimension only.

    Args:
        labels: (shape[dim],).
        shape: Shape of the map.
        dim: Dimension along which the labels vary.
    """
    view = [1] * len(shape)
    view[dim] = -1
    return labels.reshape(view).expand(tuple(shape))


def held_constant(label_map: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the map with the labels at position 0 of these dimensions repeated along them."""
    shape = label_map.shape
    for d in dims:
        label_map = label_map.narrow(d, 0, 1)
    return label_map.expand(shape)


def matched_dimensions(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match the dimensions of a reshape.

    Args:
        source: Shape before.
        target: Shape after.

    Returns:
        The finest lists of source and target dimensions whose sizes have equal products.
    """
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(target):
        left, right, a, b = [], [], 1, 1
        if i < len(source):
            left, a, i = [i], source[i], i + 1
        if j < len(target):
            right, b, j = [j], target[j], j + 1
        while a != b:
            if a < b and i < len(source):
                left, a, i = [*left, i], a * source[i], i + 1
            elif b < a and j < len(target):
                right, b, j = [*right, j], b * target[j], j + 1
            else:
                break
        pairs.append((left, right))
    return pairs


def consecutive(first: int, size: int) -> Tensor:
    """Return consecutive labels, (size,)."""
    return torch.arange(first, first + size)
