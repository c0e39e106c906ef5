"""Which cluster each filter of a block belongs to, as places in a list of equal clusters.

A grouped convolution needs groups of equal size that follow one another. So K clusters have S places each, and
``slot[n] = S * cluster + place`` says where filter n sits: places may stay empty, and neighbouring filters may belong
to different clusters.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BlockLevel = Literal["filter", "cluster", "layer", "spatial"]


def slots_of(cluster: Tensor, clusters: int, *, size: int = 0) -> tuple[Tensor, int]:
    """Give every filter a place in its cluster, in the order of the filters.

    Args:
        cluster: (N,) int64, from 0 to ``clusters - 1``.
        clusters: K.
        size: Least number of places in a cluster.

    Returns:
        ``slot`` (N,) int64, and S: ``size``, or the filters of the largest cluster where they are more.
    """
    counts = torch.bincount(cluster, minlength=clusters)
    order = cluster.argsort(stable=True)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(cluster)
    place[order] = torch.arange(len(cluster), device=cluster.device) - first[cluster[order]]
    size = max(size, int(counts.max()))
    return cluster * size + place, size


def even_clusters(filters: int, clusters: int) -> Tensor:
    """Return clusters of neighbouring filters, whose sizes differ by at most one: (N,) int64."""
    return torch.arange(filters) * clusters // filters


def clusters_to_keep(cluster: Tensor, clusters: int, groups: int) -> list[int]:
    """Return the clusters that a block still needs after filters were removed.

    A convolution in groups needs as many clusters in one group as in another: of the empty ones as many go as every
    group can spare, and a group without any filter goes whole.

    Args:
        cluster: (N,) int64, of the filters that stayed.
        clusters: K before.
        groups: Groups of the convolution before; K is a multiple of it.

    Returns:
        Clusters to keep, ascending.
    """
    used = (torch.bincount(cluster, minlength=clusters) > 0).view(groups, -1).tolist()
    alive = [(group, row) for group, row in enumerate(used) if any(row)]
    needed = max(sum(row) for _, row in alive)
    kept = []
    for group, row in alive:
        used_first = sorted(range(len(row)), key=row.__getitem__, reverse=True)
        kept += sorted(group * len(row) + column for column in used_first[:needed])
    return kept


def wrong_slots(slot: Tensor, *, filters: int, clusters: int, size: int, groups: int) -> str:
    """Say what is wrong with the places of filters that a file gives; an empty text where nothing is.

    Args:
        slot: As it was read.
        filters: N.
        clusters: K.
        size: S.
        groups: Groups of the convolution, within which a filter's cluster has to lie.
    """
    if slot.shape != (filters,) or slot.dtype != torch.int64:
        return f"is {slot.dtype} of shape {tuple(slot.shape)}, expected torch.int64 of shape ({filters},)"
    slot = slot.cpu()
    if int(slot.min()) < 0 or int(slot.max()) >= clusters * size or len(slot.unique()) < filters:
        return f"does not give each filter a place of its own from 0 to {clusters * size - 1}"
    own = torch.arange(filters) // (filters // groups)
    if not torch.equal(slot // size // (clusters // groups), own):
        return f"puts filters into clusters of another of the {groups} channel groups"
    return ""
