"""Take filters, input channels or components out of a block or a CPDLinear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from norton_plugin.blocks.clusters import clusters_to_keep, slots_of
from norton_plugin.blocks.renewal import check_groups, checked_index, gather_parameter_, select_parameter_
from norton_plugin.errors import SurgeryError

if TYPE_CHECKING:
    from norton_plugin.blocks.cpd_block import CPDBlock
    from norton_plugin.blocks.cpd_linear import CPDLinear

_SHARED = (("head", 0), ("mix", 1))  # dimensions of a CPDLinear that number its components


def select_(block: CPDBlock, keep: Tensor | Sequence[int], axis: str) -> None:
    """Keep some positions along one axis of a block, in place; see ``CPDBlock.select_``."""
    sizes = {"filters": block.out_channels, "channels": block.head.shape[2], "components": block.components}
    index = checked_index(keep, axis, sizes, block.head)
    if axis == "filters" and block.groups > 1:
        check_groups(index * block.groups // block.out_channels, block.groups, "filters")
    if axis == "components":
        _keep_components_(block, index)
    elif axis == "channels":
        select_parameter_(block, "head", index, 2)
        block.in_channels = index.numel() * block.groups
    else:
        for name in ("mix", "bias") if block.mix is not None else ("head", *block.axes, "bias"):
            select_parameter_(block, name, index, 0)
        if block.slot is not None:
            block.slot = block.slot.index_select(0, index)
        compact_(block, groups=block.groups)


def select_linear_(layer: CPDLinear, keep: Tensor | Sequence[int], axis: str) -> None:
    """Keep some positions along one axis of a CPDLinear, in place; see ``CPDLinear.select_``."""
    sizes = {"filters": layer.out_features, "channels": layer.in_features, "components": layer.components}
    index = checked_index(keep, axis, sizes, layer.head)
    for name, dim in {"filters": (("mix", 0), ("bias", 0)), "channels": (("head", 1),)}.get(axis, _SHARED):
        select_parameter_(layer, name, index, dim)
    compact_linear_(layer)


def compact_linear_(layer: CPDLinear) -> None:
    """Follow a cut of outputs or inputs: renew the sizes, and drop components that no output uses any more."""
    used = (layer.mix.detach() != 0).any(0)
    if not bool(used.all()):
        index = used.nonzero().squeeze(1) if bool(used.any()) else used.new_zeros(1, dtype=torch.long)
        for name, dim in _SHARED:
            select_parameter_(layer, name, index, dim)
    layer.out_features, layer.components = layer.mix.shape
    layer.in_features = layer.head.shape[1]


def compact_(block: CPDBlock, *, groups: int) -> None:
    """Follow a cut of filters: renew the sizes, and drop clusters and components that no filter uses any more.

    Args:
        block: Its parameters and places were cut already, its sizes were not. What it computes stays as it is.
        groups: Groups of the convolution before the cut.
    """
    if block.mix is None:
        block.out_channels = block.clusters = block.head.shape[0]
        return
    block.out_channels = block.mix.shape[0]
    if block.slot is not None:
        cluster = block.cluster
        kept = clusters_to_keep(cluster, block.clusters, groups)
        index = torch.tensor(kept, device=cluster.device)
        if len(kept) < block.clusters:
            for name in ("head", *block.axes):
                select_parameter_(block, name, index, 0)
        block.clusters = len(kept)
        block.slot, block.cluster_size = slots_of(torch.searchsorted(index, cluster), block.clusters)
        if block.clusters == 1:
            block.slot = None
    if block.clusters == 1:
        block.cluster_size = block.out_channels
    _drop_unused_(block, block.mix.detach())


def _drop_unused_(block: CPDBlock, mix: Tensor) -> None:
    """Drop components with which no filter of the cluster is mixed, as many as every cluster can spare."""
    used = torch.zeros(block.clusters, block.rank, dtype=torch.long, device=mix.device)
    used = used.index_add_(0, block.cluster, (mix != 0).long()) > 0
    needed = max(1, int(used.sum(1).max()))
    if needed < block.rank:
        order = (~used).long().argsort(dim=1, stable=True)[:, :needed].sort(dim=1).values
        _keep_components_(block, (order + block.rank * torch.arange(block.clusters).to(order)[:, None]).flatten())


def _keep_components_(block: CPDBlock, index: Tensor) -> None:
    """Keep components k * R + r; every cluster keeps as many."""
    index = index.sort().values
    counts = torch.bincount(index // block.rank, minlength=block.clusters)
    if len(index.unique()) < len(index) or int(counts.min()) != int(counts.max()):
        raise SurgeryError(
            f"{counts.tolist()} components would stay in the {block.clusters} clusters; every one has to keep as many"
        )
    places = (index % block.rank).view(block.clusters, -1)
    for name in ("head", *block.axes):
        gather_parameter_(block, name, places)
    if block.mix is not None:
        gather_parameter_(block, "mix", places[block.cluster])
    block.rank = places.shape[1]
