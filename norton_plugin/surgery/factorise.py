"""Run the decomposition of many layers together, and choose among what each may become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.cpd import (
    CoupledFactors,
    CPDFactors,
    SpatialFactors,
    decompose_coupled,
    decompose_filters,
    decompose_layers,
    decompose_spatial,
)
from norton_plugin.pabs import cluster_filters
from norton_plugin.reasons import Reason
from norton_plugin.recipe import Decomposition
from norton_plugin.surgery.layouts import Layout
from norton_plugin.surgery.report import Skipped
from norton_plugin.surgery.targets import Target

# Heads of this many components tell the spans of filters apart for clustering; more of them fill the space.
_CLUSTERING_RANK = 2
# At stride 2 and equal MACs a spatial SVD runs faster than shared components and errs as much (docs/results): level
# "auto" takes it up to this many times the lowest error.
_STRIDED_SPATIAL = 1.05


@dataclass(frozen=True)
class Factorised:
    """One layer, decomposed.

    Attributes:
        layout: Level, clusters and rank.
        factors: Float64.
        nmse: Per filter, (N,).
        layer_nmse: ``||W - W^||^2 / ||W||^2`` of the whole layer.
        fallback: Filters (or filters of clusters) whose ALS did not converge.
        largest_component: Norm of the largest component over that of its cluster's weight; None at the levels
            "filter" and "spatial".
    """

    layout: Layout
    factors: CPDFactors | CoupledFactors | SpatialFactors
    nmse: Tensor
    layer_nmse: float
    fallback: int
    largest_component: float | None = None


@torch.no_grad()
def factorise(
    targets: Sequence[Target], decomposition: Decomposition, *, on_detail: Callable[[str], None] | None = None
) -> tuple[list[tuple[Target, Factorised]], list[Skipped]]:
    """Decompose all layers of fixed size in one batch, then raise automatic ranks step by step.

    Args:
        targets: Layers, and what they may become.
        decomposition: How to run the decomposition.
        on_detail: Told how far it is, in words.

    Returns:
        Targets with their factors, in the order of the targets; and those of rank "auto" that miss the target NMSE.
    """
    done: dict[int, Factorised] = {}
    skipped: list[Skipped] = []
    fixed = [target for target in targets if target.request.rank != "auto"]
    chosen = _best_of(fixed, [t.layouts for t in fixed], decomposition, on_detail)
    done |= {id(target): found for target, found in zip(fixed, chosen, strict=True)}
    open_ = [(target, target.layouts) for target in targets if target.request.rank == "auto"]
    rank = 1
    while open_:
        results = _best_of([target for target, _ in open_], [each for _, each in open_], decomposition, on_detail)
        remaining = []
        for (target, _), each in zip(open_, results, strict=True):
            nmse = float(each.nmse.mean())
            if nmse <= decomposition.target_nmse:
                done[id(target)] = each
                continue
            more = target.at_rank(rank + 1, more_macs=decomposition.allow_more_macs)
            if more and more != target.at_rank(rank, more_macs=decomposition.allow_more_macs):
                remaining.append((target, more))
            else:
                cause = Reason.NMSE_TOO_HIGH.because(nmse=nmse, rank=rank, target=decomposition.target_nmse)
                skipped.append(Skipped(target.names[0], cause))
        open_, rank = remaining, rank + 1
    return [(target, done[id(target)]) for target in targets if id(target) in done], skipped


def _best_of(
    targets: Sequence[Target],
    layouts: Sequence[Sequence[Layout]],
    decomposition: Decomposition,
    on_detail: Callable[[str], None] | None,
) -> list[Factorised]:
    """Decompose every layer in each of its layouts, and keep the best one."""
    jobs = [(place, target, layout) for place, target in enumerate(targets) for layout in layouts[place]]
    best: dict[int, Factorised] = {}
    results = _all(jobs, decomposition, _Count(len(jobs), len(targets), on_detail))
    for (place, target, _), found in zip(jobs, results, strict=True):
        if place not in best or _rated(target, found) < _rated(target, best[place]):
            best[place] = found
    return [best[place] for place in range(len(targets))]


def _rated(target: Target, found: Factorised) -> float:
    """Return the error by which layouts of one layer are compared."""
    stride = getattr(target.contract, "stride", (1, 1))
    favoured = found.layout.level == "spatial" and min(stride) > 1
    return found.layer_nmse / _STRIDED_SPATIAL if favoured else found.layer_nmse


Job = tuple[int, Target, Layout]


class _Count:
    """Counts decompositions as they are done, and says so.

    Args:
        total: Decompositions to do.
        layers: Of so many layers, each of which may be tried at several levels.
        tell: Told the words, or None.
    """

    def __init__(self, total: int, layers: int, tell: Callable[[str], None] | None) -> None:
        self._done, self._tell = 0, tell
        self._of = f"{total} layers" if total == layers else f"{total} decompositions of {layers} layers"

    def __call__(self) -> None:
        """Count one more."""
        self._done += 1
        if self._tell is not None:
            self._tell(f"{self._done} of {self._of}")


def _all(jobs: Sequence[Job], decomposition: Decomposition, count: Callable[[], None]) -> list[Factorised]:
    """Decompose all jobs, those of one kind in one batch."""
    kinds = [layout.level if layout.level in ("filter", "spatial") else "shared" for _, _, layout in jobs]
    found: dict[int, Factorised] = {}
    for kind, factors_of in {"filter": _own_components, "shared": _shared_components, "spatial": _spatial}.items():
        places = [i for i, each in enumerate(kinds) if each == kind]
        found |= zip(places, factors_of([jobs[i] for i in places], decomposition, count), strict=True)
    return [found[i] for i in range(len(jobs))]


def _options(decomposition: Decomposition) -> dict[str, Any]:
    names = ("restarts", "sweeps", "tolerance", "seed")
    return {name: getattr(decomposition, name) for name in names}


def _own_components(jobs: Sequence[Job], decomposition: Decomposition, count: Callable[[], None]) -> list[Factorised]:
    """Decompose layers whose filters have components of their own."""
    weights = [target.contract.weight for _, target, _ in jobs]
    ranks = [layout.rank for _, _, layout in jobs]
    found = []
    results = decompose_layers(weights, ranks, on_layer=count, **_options(decomposition))
    for (_, _, layout), weight, result in zip(jobs, weights, results, strict=True):
        energy = weight.double().flatten(1).square().sum(1)
        whole = float((result.nmse * energy).sum() / energy.sum().clamp_min(1e-300))
        found.append(Factorised(layout, result.factors, result.nmse, whole, int(result.fallback.sum())))
    return found


def _shared_components(
    jobs: Sequence[Job], decomposition: Decomposition, count: Callable[[], None]
) -> list[Factorised]:
    """Decompose layers whose filters share components, of all of the layer or of a cluster."""
    # A layer may stand here in several sizes, with the same clusters.
    known: dict[tuple[nn.Module, int | None], Tensor | None] = {}
    for _, target, layout in jobs:
        key = (target.module, layout.clusters)
        if key not in known:
            known[key] = _clusters(target, layout, seed=decomposition.seed)
    results = decompose_coupled(
        [target.contract.weight for _, target, _ in jobs],
        [layout.components or 0 for _, _, layout in jobs],
        clusters=[known[target.module, layout.clusters] for _, target, layout in jobs],
        on_layer=count,
        **_options(decomposition),
    )
    return [
        Factorised(
            layout,
            coupled.factors,
            coupled.nmse,
            coupled.layer_nmse,
            int(coupled.fallback.sum()),
            coupled.largest_component,
        )
        for (_, _, layout), coupled in zip(jobs, results, strict=True)
    ]


def _spatial(jobs: Sequence[Job], decomposition: Decomposition, count: Callable[[], None]) -> list[Factorised]:
    """Decompose layers into a vertical and a horizontal convolution, which needs no iterations."""
    weights = [target.contract.weight for _, target, _ in jobs]
    groups = [target.shape.groups for _, target, _ in jobs]
    results = decompose_spatial(weights, [layout.rank for _, _, layout in jobs], groups=groups)
    for _ in jobs:
        count()
    return [
        Factorised(layout, result.factors, result.nmse, result.layer_nmse, 0)
        for (_, _, layout), result in zip(jobs, results, strict=True)
    ]


def _clusters(target: Target, layout: Layout, *, seed: int) -> Tensor | None:
    """Return the cluster of every filter, None for one cluster."""
    if layout.clusters == 1 or layout.clusters is None:
        return None
    weight, groups = target.contract.weight, target.shape.groups
    if layout.clusters == groups:
        return torch.arange(len(weight), device=weight.device) // (len(weight) // groups)
    rank = min(_CLUSTERING_RANK, target.shape.full_rank(None), target.shape.channels - 1)
    heads = decompose_filters(weight, rank, seed=seed).factors.head
    return cluster_filters(heads, layout.clusters, groups=groups)
