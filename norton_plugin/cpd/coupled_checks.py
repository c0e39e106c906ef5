"""What `decompose_coupled` refuses."""

import torch
from torch import Tensor

from norton_plugin.cpd.als import check_weight
from norton_plugin.cpd.coupled_exact import full_components
from norton_plugin.errors import DecompositionError


def cluster_index(cluster: Tensor | None, weight: Tensor) -> Tensor:
    """Return the cluster of every filter, int64 on the device of the weight.

    Args:
        cluster: Integers (N,) from 0 to K - 1, every one of them used, or None for one cluster.
        weight: Should be floating, finite, non-empty, of shape (N, C, Kh, Kw).

    Returns:
        Shape (N,).

    Raises:
        DecompositionError: The weight or the index is none of this.
    """
    check_weight(weight, 1)
    if cluster is None:
        return torch.zeros(len(weight), dtype=torch.int64, device=weight.device)
    integer = not (cluster.is_floating_point() or cluster.is_complex() or cluster.dtype == torch.bool)
    if not integer or tuple(cluster.shape) != (len(weight),):
        raise DecompositionError(
            f"A cluster index came with shape {tuple(cluster.shape)} and type {cluster.dtype} for {len(weight)} "
            f"filters; expected integers of shape ({len(weight)},). Give every filter the number of its cluster."
        )
    index = cluster.detach().to(device=weight.device, dtype=torch.int64)
    used = index.unique()
    if int(used[0]) != 0 or int(used[-1]) != len(used) - 1:
        raise DecompositionError(
            f"A cluster index names {len(used)} clusters between {int(used[0])} and {int(used[-1])}; expected every "
            "number from 0 to K - 1. A cluster without filters cannot be decomposed: number the others anew."
        )
    return index


def check_layer(weight: Tensor, components: int, cluster: Tensor, metric: Tensor | None) -> int:
    """Check what was asked of a layer.

    Args:
        weight: Checked, shape (N, C, Kh, Kw).
        components: M.
        cluster: Checked, shape (N,).
        metric: Should be None, or (C, C), finite and symmetric, for kernels 1x1.

    Returns:
        Components R of one cluster.

    Raises:
        DecompositionError: M does not divide among the clusters or is out of range, or the metric does not fit.
    """
    filters, channels, *kernel_size = weight.shape
    clusters = int(cluster.max()) + 1
    full = full_components(int(torch.bincount(cluster).max()), channels, kernel_size)
    integer = isinstance(components, int) and not isinstance(components, bool)
    if not integer or not 1 <= components <= clusters * full or components % clusters:
        raise DecompositionError(
            f"{components} components were asked for {filters} filters of shape {tuple(weight.shape[1:])} in "
            f"{clusters} cluster(s); expected a multiple of {clusters} from {clusters} to {clusters * full}, where the "
            "factorisation is already exact. Round the number, or change the clusters."
        )
    if metric is not None:
        _check_metric(metric, weight)
    return components // clusters


def _check_metric(metric: Tensor, weight: Tensor) -> None:
    channels = weight.shape[1]
    if weight.shape[2:].numel() != 1:
        raise DecompositionError(
            f"A metric came for a kernel of {tuple(weight.shape[2:])}; it is used for 1x1 kernels only. Leave it out."
        )
    if tuple(metric.shape) != (channels, channels) or not metric.is_floating_point():
        raise DecompositionError(
            f"A metric came with shape {tuple(metric.shape)} and type {metric.dtype}; expected a floating "
            f"({channels}, {channels}), the second moment of the {channels} input channels."
        )
    if not bool(metric.isfinite().all()) or float((metric - metric.mT).abs().max()) > 1e-5 * float(metric.abs().max()):
        raise DecompositionError(
            "A metric is not finite or not symmetric; expected a second moment E[x x'] of the inputs. "
            "Check the statistics it was made from."
        )
