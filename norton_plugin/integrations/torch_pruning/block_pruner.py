"""Torch-Pruning's view of a CPDBlock, a SpatialSVDBlock and a CPDLinear."""

from __future__ import annotations

from collections.abc import Sequence

import torch_pruning as tp
from torch import nn

from norton_plugin.blocks import ConvBlock, CPDBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.errors import SurgeryError


class CPDBlockPruner(tp.pruner.BasePruningFunc):
    """Prune a CPDBlock by index selects on its factors.

    Register it for the exact class, and list ``CPDBlock`` among ``root_module_types``: Torch-Pruning passes silently
    over classes it was not told of.
    """

    TARGET_MODULES: type[ConvBlock] = CPDBlock

    def prune_out_channels(self, layer: ConvBlock, idxs: Sequence[int]) -> ConvBlock:
        """Remove filters; raises SurgeryError on indices out of range."""
        layer.select_(_kept(layer.out_channels, idxs, layer), "filters")
        return layer

    def prune_in_channels(self, layer: ConvBlock, idxs: Sequence[int]) -> ConvBlock:
        """Remove input channels; a grouped block loses the same ones in each of its groups."""
        kept = _kept(layer.in_channels, idxs, layer)
        per_group = layer.in_channels // layer.groups
        local = [[i % per_group for i in kept if i // per_group == g] for g in range(layer.groups)]
        if any(group != local[0] for group in local):
            raise SurgeryError(
                f"a block of {layer.groups} groups must lose the same channels in each; asked to keep {local}"
            )
        layer.select_(local[0], "channels")
        return layer

    def get_out_channels(self, layer: ConvBlock) -> int:
        """Return the number of filters."""
        return layer.out_channels

    def get_in_channels(self, layer: ConvBlock) -> int:
        """Return the channels of the input."""
        return layer.in_channels

    def get_in_channel_groups(self, layer: ConvBlock) -> int:
        """Return how many groups the input channels fall into."""
        return layer.groups

    def get_out_channel_groups(self, layer: ConvBlock) -> int:
        """Return how many groups the filters fall into."""
        return layer.groups


class SpatialSVDBlockPruner(CPDBlockPruner):
    """Prune a SpatialSVDBlock by index selects on its factors; to be registered as ``CPDBlockPruner`` is."""

    TARGET_MODULES = SpatialSVDBlock


class CPDLinearPruner(tp.pruner.BasePruningFunc):
    """Prune a CPDLinear by index selects on its factors; to be registered as ``CPDBlockPruner`` is."""

    TARGET_MODULES = CPDLinear

    def prune_out_channels(self, layer: CPDLinear, idxs: Sequence[int]) -> CPDLinear:
        """Remove outputs; raises SurgeryError on indices out of range."""
        layer.select_(_kept(layer.out_features, idxs, layer), "filters")
        return layer

    def prune_in_channels(self, layer: CPDLinear, idxs: Sequence[int]) -> CPDLinear:
        """Remove inputs; raises SurgeryError on indices out of range."""
        layer.select_(_kept(layer.in_features, idxs, layer), "channels")
        return layer

    def get_out_channels(self, layer: CPDLinear) -> int:
        """Return the number of outputs."""
        return layer.out_features

    def get_in_channels(self, layer: CPDLinear) -> int:
        """Return the number of inputs."""
        return layer.in_features


def _kept(size: int, removed: Sequence[int], layer: nn.Module) -> list[int]:
    gone = {int(i) for i in removed}
    if any(not 0 <= i < size for i in gone) or len(gone) >= size:
        raise SurgeryError(f"cannot remove channels {sorted(gone)} of the {size} of {layer}")
    return [i for i in range(size) if i not in gone]
