"""What a layer's outputs are computed from: patches of its input at chosen output positions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from norton_plugin.blocks.padding import PaddingRule, pad, sides


@dataclass(frozen=True)
class PatchGeometry:
    """How a layer reads its input.

    Attributes:
        kernel_size: (Kh, Kw), or the lengths of another number of axes; (1, 1) for a Linear layer.
        stride: (vertical, horizontal).
        padding: As ``blocks.padding`` names it.
        dilation: (vertical, horizontal).
        groups: G.
        padding_mode: As of ``nn.Conv2d``.
        channels_last: Whether channels are the last dimension, as for a Linear layer.
    """

    kernel_size: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: PaddingRule = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    channels_last: bool = False

    @property
    def channel_axis(self) -> int:
        """Axis of the channels, in inputs and outputs, counted from the end."""
        return -1 if self.channels_last else -1 - len(self.kernel_size)

    def size_of(self, output: Tensor) -> tuple[int, ...]:
        """Return (Ho, Wo) of an output (B, N, Ho, Wo); of no meaning where channels come last."""
        return (1, 1) if self.channels_last else tuple(int(length) for length in output.shape[2:])

    def positions(self, output: Tensor) -> int:
        """Return how many positions one image has in an output (B, N, Ho, Wo), or (B, ..., N)."""
        places = output.shape[1:-1] if self.channels_last else output.shape[2:]
        return int(torch.Size(places).numel())

    def targets(self, output: Tensor, chosen: Tensor) -> Tensor:
        """Read an output at flat positions (P,): (B * P, N)."""
        if self.channels_last:
            rows = output.reshape(len(output), -1, output.shape[-1])[:, chosen]
        else:
            rows = output.flatten(2)[:, :, chosen].transpose(1, 2)
        return rows.flatten(0, 1)

    def patches(self, x: Tensor, output_size: tuple[int, ...], chosen: Tensor) -> Tensor:
        """Read what the outputs at flat positions (P,) are computed from.

        Args:
            x: The layer's input, (B, C G, H, W), or (B, ..., C).
            output_size: (Ho, Wo); of no meaning where channels come last.
            chosen: Positions, counted row by row.

        Returns:
            (B * P, G, D), D = C Kh Kw in the order of a weight (C, Kh, Kw).
        """
        if self.channels_last:
            return x.reshape(len(x), -1, x.shape[-1])[:, chosen].flatten(0, 1)[:, None]
        amounts = sides(
            self.padding,
            size=tuple(x.shape[2:]),
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
        )
        x = pad(x, amounts, self.padding_mode)
        first: list[Tensor] = []  # places of the patches' first pixels, along every axis
        for length, stride in zip(reversed(output_size), reversed(self.stride), strict=True):
            first.insert(0, chosen % length * stride)
            chosen = torch.div(chosen, length, rounding_mode="floor")
        parts = []
        for offsets in itertools.product(*map(range, self.kernel_size)):
            moved = zip(first, offsets, self.dilation, strict=True)
            index: Any = (slice(None), slice(None), *(place + i * step for place, i, step in moved))
            parts.append(x[index])
        rows = torch.stack(parts, 2).permute(0, 3, 1, 2).flatten(0, 1)  # (B P, C G, Kh Kw)
        return rows.reshape(len(rows), self.groups, -1)
