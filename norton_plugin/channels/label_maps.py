"""Shadows of tensors: which channel every element belongs to.

A *plane* is an int64 tensor with the shape of the tensor it shadows; it holds a label per element, 0 where the element
belongs to no channel. Along dimensions in which its labels do not vary it has stride 0, so it costs next to nothing.
An element can belong to several channels at once (an entry of a weight: to a filter and to an input channel), so a
*shadow* has any number of planes. The element vanishes as soon as one of its channels is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Shadow(NamedTuple):
    """The planes of one tensor.

    Attributes:
        planes: Each of the tensor's shape.
        constant: Whether the tensor is computed from parameters and constants alone.
        rows: Labels before any of them were replaced by a representative, while every element is still a multiple
            of one output of a layer; None afterwards.
        scores: Whether it holds products of activations summed over their channels, as attention does: its
            dimensions are positions and heads.
    """

    planes: tuple[Tensor, ...] = ()
    constant: bool = True
    rows: Tensor | None = None
    scores: bool = False


def varying(plane: Tensor) -> list[int]:
    """Dimensions along which a compact plane's labels vary."""
    return [d for d in range(plane.dim()) if plane.shape[d] > 1 and plane.stride(d) != 0]


def core(plane: Tensor) -> Tensor:
    """The plane with size 1 along dimensions of stride 0."""
    for d in range(plane.dim()):
        if plane.stride(d) == 0 and plane.shape[d] > 1:
            plane = plane.narrow(d, 0, 1)
    return plane


def compact(plane: Tensor) -> Tensor:
    """The same plane with stride 0 wherever its labels do not vary."""
    if plane.numel() == 0:
        return plane
    small = core(plane)
    for d in varying(small):
        head = small.narrow(d, 0, 1)
        if bool((small == head).all()):
            small = head
    return small.contiguous().expand(plane.shape)


def along(plane: Tensor, dim: int) -> Tensor:
    """Labels along one dimension, (size,), at position 0 of all others."""
    dim %= plane.dim()
    for d in range(plane.dim() - 1, -1, -1):
        if d != dim:
            plane = plane.select(d, 0)
    return plane


def spread(vector: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """A plane of this shape whose labels vary along one dimension."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.reshape(view).expand(tuple(shape))


def held_constant(plane: Tensor, dims: Sequence[int]) -> Tensor:
    """The plane with the labels at position 0 of these dimensions everywhere along them."""
    shape = plane.shape
    for d in dims:
        plane = plane.narrow(d, 0, 1)
    return plane.expand(shape)


def chunks(source: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Matches the dimensions of a reshape: the finest lists of source and target dimensions with equal products."""
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


def as_labels(base: int, size: int) -> Tensor:
    """Consecutive labels, (size,)."""
    return torch.arange(base, base + size)
