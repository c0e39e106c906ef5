"""What a layer's outputs are computed from: patches of its input at chosen output positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from norton_plugin.blocks.padding import PaddingRule, pad, sides


@dataclass(frozen=True)
class PatchGeometry:
    """How a layer reads its input.

    Attributes:
        kernel_size: (Kh, Kw); (1, 1) for a Linear layer.
        stride: (vertical, horizontal).
        padding: As ``blocks.padding`` names it.
        dilation: (vertical, horizontal).
        groups: G.
        padding_mode: As of ``nn.Conv2d``.
        channels_last: Whether channels are the last dimension, as for a Linear layer.
    """

    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: PaddingRule = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    channels_last: bool = False

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

    def patches(self, x: Tensor, output_size: tuple[int, int], chosen: Tensor) -> Tensor:
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
            size=(x.shape[-2], x.shape[-1]),
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
        )
        x = pad(x, amounts, self.padding_mode)
        top = torch.div(chosen, output_size[1], rounding_mode="floor") * self.stride[0]
        left = chosen % output_size[1] * self.stride[1]
        parts = [
            x[:, :, top + i * self.dilation[0], left + j * self.dilation[1]]
            for i in range(self.kernel_size[0])
            for j in range(self.kernel_size[1])
        ]
        rows = torch.stack(parts, 2).permute(0, 3, 1, 2).flatten(0, 1)  # (B P, C G, Kh Kw)
        return rows.reshape(len(rows), self.groups, -1)
