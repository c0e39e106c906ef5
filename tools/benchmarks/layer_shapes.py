"""The convolutions that levels are timed on: eight 3x3 layers as ResNets and detectors have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from norton_plugin.recipe import LayerRequest
from norton_plugin.surgery.layouts import LayerShape, Layout, filling_lanes, layouts_for

CLUSTERS = 4


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution with padding 1.

    Attributes:
        channels: C.
        size: Side of the input map in pixels.
        stride: In pixels.
        other_filters: N where it is not C.
    """

    channels: int
    size: int
    stride: int = 1
    other_filters: int | None = None

    @property
    def filters(self) -> int:
        """N."""
        return self.other_filters or self.channels

    @property
    def name(self) -> str:
        """Channels x height x width, and the stride where it is not 1."""
        return f"{self.channels}x{self.size}x{self.size}" + (f" /{self.stride}" if self.stride > 1 else "")

    @property
    def output_size(self) -> int:
        """Side of the output map in pixels."""
        return (self.size - 1) // self.stride + 1

    @property
    def shape(self) -> LayerShape:
        """What decides the cost, as surgery sees it."""
        sizes = {"input_size": (self.size,) * 2, "output_size": (self.output_size,) * 2}
        return LayerShape(self.filters, self.channels, (3, 3), **sizes)

    def layout(self, level: str, rank: int) -> Layout | None:
        """Return what the recipe makes of a rank at a level; None where it saves no MACs."""
        request = LayerRequest(rank=rank, level=level, clusters=CLUSTERS if level == "cluster" else None)
        found = layouts_for(self.shape, request, name=self.name, more_macs=False)
        return found[0] if isinstance(found, tuple) else None

    def layout_within(self, level: Literal["cluster", "layer", "spatial"], macs: float) -> Layout | None:
        """Return the largest layout of a shared level within so many MACs, as the recipe rounds it; None if none."""
        clusters = CLUSTERS if level == "cluster" else 1
        highest = self.shape.highest_rank(clusters, macs, spatial=level == "spatial")
        rank = filling_lanes(highest, clusters)
        return Layout(level, clusters, rank) if rank else None


LAYERS = (
    Layer(64, 112),
    Layer(64, 56),
    Layer(128, 56, 2),
    Layer(128, 28),
    Layer(256, 50),
    Layer(256, 25),
    Layer(256, 14),
    Layer(512, 7),
)
