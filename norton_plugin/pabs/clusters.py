"""Clusters of filters whose heads span similar subspaces: which filters may share components."""

import torch
from torch import Tensor

from norton_plugin.errors import DecompositionError, MissingExtraError
from norton_plugin.pabs.angles import angles_between, row_subspaces

# Optimal leaf ordering takes time cubic in the filters: up to this number it is a matter of seconds.
_OPTIMAL_UP_TO = 1024
_DECIMALS = 9  # of a radian: below are rounding errors, which must not decide the order


def cluster_filters(heads: Tensor, clusters: int, *, groups: int = 1) -> Tensor:
    """Sort filters into clusters of nearly equal size by the PABS distance between their heads.

    Average-linkage hierarchical clustering of the largest principal angles between the spans (docs/method.md, section
    2). Its leaves, ordered so that neighbours are close, are cut into runs whose lengths differ by at most one: a
    convolution with groups, as the mix of equal clusters is, needs equal sizes.

    Args:
        heads: Floating tensor (N, R, C), such as the heads of a filter-wise CPD.
        clusters: K, from 1 to N, a multiple of `groups`; at most N / groups per group.
        groups: Groups of the convolution, which divide N. No cluster crosses their borders, and the numbers of
            the clusters ascend with the group.

    Returns:
        Int64 tensor (N,) on the device of the heads, the cluster of every filter, from 0 to K - 1. Equal heads give
        equal clusters.

    Raises:
        DecompositionError: The heads are no finite floating (N, R, C); the numbers do not fit each other; or every
            head spans the whole space (R >= C), so that nothing tells filters apart: compare the filters as vectors
            (heads of shape (N, 1, C * Kh * Kw)) instead.
        MissingExtraError: scipy is not installed.
    """
    spans = row_subspaces(heads)
    count = len(heads)
    if groups < 1 or count % groups or clusters % groups or not groups <= clusters <= count:
        raise DecompositionError(
            f"{clusters} clusters in {groups} group(s) were asked for {count} filters; expected groups that divide "
            "the filters, and a number of clusters that is a multiple of the groups and at most the filters."
        )
    size, each = count // groups, clusters // groups
    run = (torch.arange(size, device=heads.device) * each).div(size, rounding_mode="floor")
    offset = (torch.arange(groups, device=heads.device) * each).repeat_interleave(size)
    if each in (1, size):
        return run.repeat(groups) + offset
    if not spans.informative:
        raise DecompositionError(
            f"Heads of shape {tuple(heads.shape)} span the whole space, so that every angle is zero and no filter is "
            "closer to one than to another. Compare the filters as vectors: pass heads of shape (N, 1, D)."
        )
    angles = angles_between(spans)
    found = []
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        order = _leaf_order(angles[part, part]).to(heads.device)
        found.append(torch.empty_like(run).index_copy(0, order, run))
    return torch.cat(found) + offset


def _leaf_order(distance: Tensor) -> Tensor:
    """Order of the leaves of the dendrogram, neighbours close to each other."""
    try:  # here, as it takes longer than the rest of the package
        from scipy.cluster.hierarchy import leaves_list, linkage
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise MissingExtraError("scipy is not installed; run: pip install 'norton-plugin[cluster]'") from error

    condensed = squareform(distance.cpu().numpy().round(_DECIMALS), checks=False)
    tree = linkage(condensed, method="average", optimal_ordering=len(distance) <= _OPTIMAL_UP_TO)
    return torch.from_numpy(leaves_list(tree)).long()
