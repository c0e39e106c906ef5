"""Run the decomposition of many layers together, and choose among what each may become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norton_plugin.cpd import CoupledFactors, CPDFactors, decompose_coupled, decompose_filters, decompose_layers
from norton_plugin.pabs import cluster_filters
from norton_plugin.reasons import Reason
from norton_plugin.recipe import Decomposition
from norton_plugin.surgery.layouts import Layout
from norton_plugin.surgery.report import Skipped
from norton_plugin.surgery.targets import Target

# Heads of this many components tell the spans of filters apart for clustering; more of them fill the space.
_CLUSTERING_RANK = 2


@dataclass(frozen=True)
class Factorised:
    """One layer, decomposed.

    Attributes:
        layout: Level, clusters and rank.
        factors: Float64.
        nmse: Per filter, (N,).
        layer_nmse: ``||W - W^||^2 / ||W||^2`` of the whole layer.
        fallback: Filters (or filters of clusters) whose ALS did not converge.
        largest_component: Norm of the largest component over that of its cluster's weight; None at level "filter".
    """

    layout: Layout
    factors: CPDFactors | CoupledFactors
    nmse: Tensor
    layer_nmse: float
    fallback: int
    largest_component: float | None = None


@torch.no_grad()
def factorise(
    targets: Sequence[Target], decomposition: Decomposition
) -> tuple[list[tuple[Target, Factorised]], list[Skipped]]:
    """Decompose all layers of fixed size in one batch, then raise automatic ranks step by step.

    Args:
        targets: Layers, and what they may become.
        decomposition: How to run the decomposition.

    Returns:
        Targets with their factors, in the order of the targets; and those of rank "auto" that miss the target NMSE.
    """
    done: dict[int, Factorised] = {}
    skipped: list[Skipped] = []
    fixed = [target for target in targets if target.request.rank != "auto"]
    for target, found in zip(fixed, _best_of(fixed, [t.layouts for t in fixed], decomposition), strict=True):
        done[id(target)] = found
    open_ = [(target, target.layouts) for target in targets if target.request.rank == "auto"]
    rank = 1
    while open_:
        results = _best_of([target for target, _ in open_], [layouts for _, layouts in open_], decomposition)
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
    targets: Sequence[Target], layouts: Sequence[Sequence[Layout]], decomposition: Decomposition
) -> list[Factorised]:
    """Decompose every layer in each of its layouts, and keep the one of the lowest error."""
    jobs = [(place, target, layout) for place, target in enumerate(targets) for layout in layouts[place]]
    best: dict[int, Factorised] = {}
    results = _all(jobs, decomposition)
    for (place, _, _), found in zip(jobs, results, strict=True):
        if place not in best or found.layer_nmse < best[place].layer_nmse:
            best[place] = found
    return [best[place] for place in range(len(targets))]


def _all(jobs: Sequence[tuple[int, Target, Layout]], decomposition: Decomposition) -> list[Factorised]:
    """Decompose all jobs, those of one kind in one batch."""
    options = {
        "restarts": decomposition.restarts,
        "sweeps": decomposition.sweeps,
        "tolerance": decomposition.tolerance,
        "seed": decomposition.seed,
    }
    found: dict[int, Factorised] = {}
    alone = [i for i, (_, _, layout) in enumerate(jobs) if layout.clusters is None]
    weights = [jobs[i][1].contract.weight for i in alone]
    ranks = [jobs[i][2].rank for i in alone]
    for i, weight, result in zip(alone, weights, decompose_layers(weights, ranks, **options), strict=True):  # type: ignore[arg-type]
        energy = weight.double().flatten(1).square().sum(1)
        whole = float((result.nmse * energy).sum() / energy.sum().clamp_min(1e-300))
        found[i] = Factorised(jobs[i][2], result.factors, result.nmse, whole, int(result.fallback.sum()))
    shared = [i for i, (_, _, layout) in enumerate(jobs) if layout.clusters is not None]
    weights = [jobs[i][1].contract.weight for i in shared]
    components = [jobs[i][2].components or 0 for i in shared]
    # A layer may stand here in several sizes, with the same clusters.
    known: dict[tuple[nn.Module, int | None], Tensor | None] = {}
    for _, target, layout in (jobs[i] for i in shared):
        key = (target.module, layout.clusters)
        if key not in known:
            known[key] = _clusters(target, layout, seed=decomposition.seed)
    clusters = [known[jobs[i][1].module, jobs[i][2].clusters] for i in shared]
    for i, coupled in zip(
        shared,
        decompose_coupled(weights, components, clusters=clusters, **options),  # type: ignore[arg-type]
        strict=True,
    ):
        found[i] = Factorised(
            jobs[i][2],
            coupled.factors,
            coupled.nmse,
            coupled.layer_nmse,
            int(coupled.fallback.sum()),
            coupled.largest_component,
        )
    return [found[i] for i in range(len(jobs))]


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
