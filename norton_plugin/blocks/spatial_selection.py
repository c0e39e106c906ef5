"""Take filters, input channels or components out of a spatial SVD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from norton_plugin.blocks.renewal import check_groups, checked_index, gather_parameter_, select_parameter_

if TYPE_CHECKING:
    from norton_plugin.blocks.spatial_svd_block import SpatialSVDBlock


def select_spatial_(block: SpatialSVDBlock, keep: Tensor | Sequence[int], axis: str) -> None:
    """Keep some positions along one axis of a block, in place; see ``SpatialSVDBlock.select_``."""
    sizes = {"filters": block.out_channels, "channels": block.vertical.shape[1], "components": block.components}
    index = checked_index(keep, axis, sizes, block.vertical)
    if axis == "components":
        _keep_components_(block, index.sort().values)
    elif axis == "channels":
        select_parameter_(block, "vertical", index, 1)
        block.in_channels = index.numel() * block.groups
    else:
        check_groups(index * block.groups // block.out_channels, block.groups, "filters")
        select_parameter_(block, "horizontal", index, 0)
        select_parameter_(block, "bias", index, 0)
        if block.group is not None:
            block.group = block.group.index_select(0, index)
        compact_spatial_(block)


def compact_spatial_(block: SpatialSVDBlock) -> None:
    """Follow a cut of filters or channels: renew the sizes, drop groups without filters and components without use.

    Args:
        block: Its parameters and the groups of its filters were cut already; what it computes stays as it is.
    """
    filters, rank, _ = block.horizontal.shape
    block.out_channels = filters
    if block.group is not None:
        alive = block.group.unique()
        rows = (alive[:, None] * rank + torch.arange(rank, device=alive.device)).flatten()
        if len(rows) < len(block.vertical):
            select_parameter_(block, "vertical", rows, 0)
        block.groups = len(alive)
        block.number_groups_()
    used = (block.horizontal.detach() != 0).any(2).view(block.groups, -1, rank).any(1)
    needed = max(1, int(used.sum(1).max()))
    if needed < rank:
        order = (~used).long().argsort(dim=1, stable=True)[:, :needed].sort(dim=1).values
        first = rank * torch.arange(block.groups, device=order.device)
        _keep_components_(block, (order + first[:, None]).flatten())


def _keep_components_(block: SpatialSVDBlock, index: Tensor) -> None:
    """Keep components g * R + r, ascending; every group keeps as many."""
    check_groups(index // block.rank, block.groups, "components")
    places = (index % block.rank).view(block.groups, -1).repeat_interleave(block.out_channels // block.groups, dim=0)
    select_parameter_(block, "vertical", index, 0)
    gather_parameter_(block, "horizontal", places)
    block.rank = places.shape[1]
