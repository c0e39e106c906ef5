"""Error of every level, Tucker-2 and spatial SVD on weights of a width: NMSE of the whole layer, by method and size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from comparison_methods import approximate_layer
from torch import Tensor

from norton_plugin.cpd import decompose_coupled, decompose_filters, decompose_layers
from norton_plugin.pabs import cluster_filters

# One start and few sweeps: what is measured is which method is ahead, not the last percent of its error.
EFFORT = {"restarts": 1, "sweeps": 40}


def errors(weights: Sequence[Tensor], method: str, size: int, *, clusters: int) -> float:
    """Return the NMSE, averaged over weights.

    Args:
        weights: (N, C, 3, 3) each.
        method: ``"filter"``, ``"cluster"``, ``"layer"``, ``"tucker2"`` or ``"svd_spatial"``.
        size: R per filter; components of all clusters; or the rank.
        clusters: At the level ``"cluster"``; filters are put together by PABS.
    """
    if method == "filter":
        energies = [weight.flatten(1).square().sum(1) for weight in weights]
        results = decompose_layers(list(weights), [size] * len(weights), **EFFORT)
        return statistics.fmean(
            float((result.nmse * energy).sum() / energy.sum()) for result, energy in zip(results, energies, strict=True)
        )
    if method in ("cluster", "layer"):
        index = [cluster_of(weight, clusters) if method == "cluster" else None for weight in weights]
        results = decompose_coupled(list(weights), size, clusters=index, **EFFORT)
        return statistics.fmean(result.layer_nmse for result in results)
    return statistics.fmean(approximate_layer(weight, size, method=method).nmse for weight in weights)


def cluster_of(weight: Tensor, clusters: int) -> Tensor:
    """Return the cluster of every filter, as surgery finds it."""
    rank = min(2, weight.shape[1] - 1)
    return cluster_filters(decompose_filters(weight, rank).factors.head, clusters)
