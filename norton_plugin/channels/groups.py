"""Channels that belong together, as plain records."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from norton_plugin.channels.layers import is_producer
from norton_plugin.reasons import Cause


@dataclass(frozen=True)
class Member:
    """One module of a group and the channels that belong to it.

    Attributes:
        module: The layer, or a bare parameter.
        name: Its dotted name.
        role: ``"out"`` (its filters), ``"in"`` (its input channels) or ``"both"`` (norms, depthwise convolutions).
        indices: Channels of the module, in the order of ``roots``.
        roots: The root channel of each.
    """

    module: nn.Module | nn.Parameter
    name: str
    role: str
    indices: tuple[int, ...]
    roots: tuple[int, ...]

    @property
    def depthwise(self) -> bool:
        """Whether this is a convolution with one filter per channel."""
        return 1 < getattr(self.module, "groups", 1) == getattr(self.module, "out_channels", 0)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that have to be removed together.

    Attributes:
        root: Name of the layer whose outputs number the group's channels.
        size: How many channels.
        channel_groups: Every one of so many equal parts loses the same channels (grouped convolutions, GroupNorm).
        members: All modules concerned.
        blocked: Why the group cannot be pruned, or None.
    """

    root: str
    size: int
    channel_groups: int
    members: tuple[Member, ...]
    blocked: Cause | None

    @property
    def producers(self) -> list[Member]:
        """Layers whose filters compute these channels."""
        return [m for m in self.members if m.role == "out" and is_producer(m.module) and not m.depthwise]

    @property
    def consumers(self) -> list[Member]:
        """Layers that read these channels and mix them."""
        return [m for m in self.members if m.role == "in"]
