"""Phase two on a model: redundant filters go, with everything that is coupled to them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import SurgeryError
from norton_plugin.pabs import removal_order, removal_scores
from norton_plugin.patterns import lookup, require_matches
from norton_plugin.recipe import Pruning, Scope
from norton_plugin.surgery.counts import channels_to_keep
from norton_plugin.surgery.distances import fold, group_distance
from norton_plugin.surgery.groups import ChannelGroup
from norton_plugin.surgery.labels import LabelGraph
from norton_plugin.surgery.report import PrunedGroup, PruningReport, Skipped, summary
from norton_plugin.surgery.running import ForwardFunction, output_tensors, run_model, traceable
from norton_plugin.surgery.surgeon import Plan, Surgeon

logger = logging.getLogger(__name__)


def prune_(
    model: nn.Module,
    example_inputs: Any,
    pruning: Pruning,
    *,
    scope: Scope | None = None,
    ignored: Sequence[nn.Module] = (),
    verify: bool = True,
    forward_fn: ForwardFunction | None = None,
    require: bool = True,
    time_limit: float = 60.0,
) -> PruningReport:
    """Removes filters by their distances, in place.

    Every group is checked against the unpruned model with the same channels masked; a group that differs is rolled
    back exactly and listed, the others stand. Outputs of the model always keep their width.

    Args:
        model: Changed in place, or not at all where an error is raised.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        pruning: Shares, rounding, criterion.
        scope: Layers whose outputs may lose channels; all by default.
        ignored: Modules whose outputs must keep their width, with all below them.
        verify: Compare with the masked model (two forward passes, more only where something fails).
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.
        require: Raise where nothing can be pruned; otherwise the report is merely empty.
        time_limit: Seconds that tracing may take, and that verification may take.

    Returns:
        What was removed, and every group left whole with its reason.

    Raises:
        RecipeError: A pattern matches nothing.
        SurgeryError: The model cannot be traced, or nothing can be pruned and ``require`` is set.
    """
    scope = scope or Scope()
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    scope.check(names)
    require_matches(pruning.keeps, names, what="pruning.keeps")
    try:
        graph = LabelGraph(model, example_inputs, forward_fn=forward_fn, time_limit=time_limit)
    except SurgeryError as error:
        if require:
            raise
        return PruningReport((), (Skipped("(whole model)", str(error)),))
    frozen = {module for top in ignored for module in top.modules()}
    plans, skipped = _plan(graph, pruning, scope, frozen)

    def outputs() -> list[Tensor]:
        with traceable(model), torch.no_grad():
            return [t.detach().double() for t in output_tensors(run_model(model, example_inputs, forward_fn))]

    surgeon = Surgeon(model, graph, outputs)
    if verify:
        records, failures, seconds = surgeon.prune_verified_(plans, time_limit=time_limit)
    else:
        surgeon.prune_all_(plans)
        records, failures, seconds = [plan.record for plan in plans], [], 0.0
    skipped += failures
    if require and not records:
        raise SurgeryError(f"no channel of the model can be removed: {summary(skipped) or 'it has no prunable layer'}")
    logger.info("pruned %d groups, left %d", len(records), len(skipped))
    return PruningReport(tuple(records), tuple(skipped), verify, seconds)


def _plan(
    graph: LabelGraph, pruning: Pruning, scope: Scope, frozen: set[nn.Module]
) -> tuple[list[Plan], list[Skipped]]:
    """Decides for every group which channels go."""
    candidates: list[tuple[ChannelGroup, float, Tensor, tuple[str, ...]]] = []
    skipped: list[Skipped] = []
    for group in graph.groups():
        reason = group.blocked or _outside(group, pruning, scope, frozen)
        keep = _keep_of(group, pruning)
        if reason is None and keep == 1:
            reason = "all its channels are asked to be kept"
        if reason is not None:
            skipped.append(Skipped(group.root, reason))
            continue
        producers = [(m.module, m.indices, m.roots) for m in group.producers]
        matrix, notes = group_distance(producers, size=group.size, criterion=pruning.criterion)  # type: ignore[arg-type]
        candidates.append((group, keep, fold(matrix, group.channel_groups), notes))
    followed = {member.name for group in graph.groups() for member in group.members}
    for name, module in graph.model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear | CPDBlock) and name not in followed:
            skipped.append(Skipped(name, "not followed: the example does not run it, or it computes from constants"))
    thresholds = _global_shares(candidates, pruning) if pruning.global_ranking else {}
    plans = []
    for group, keep, matrix, notes in candidates:
        share = thresholds.get(group.root, keep)
        count = channels_to_keep(group.size, share, round_to=pruning.round_to, parts=group.channel_groups)
        if count == group.size:
            skipped.append(Skipped(group.root, f"{group.size} channels at keep {share:g} round to {count} (round_to)"))
            continue
        per_part = group.size // group.channel_groups
        gone = removal_order(matrix)[: (group.size - count) // group.channel_groups].tolist()
        removed = tuple(sorted(part * per_part + i for part in range(group.channel_groups) for i in gone))
        members = tuple(dict.fromkeys(m.name for m in group.producers))
        record = PrunedGroup(group.root, members, group.size, count, share, notes)
        plans.append(Plan(group, removed, record))
    return plans, skipped


def _outside(group: ChannelGroup, pruning: Pruning, scope: Scope, frozen: set[nn.Module]) -> str | None:
    """Why the user does not want this group pruned, or None."""
    for member in group.members:
        if member.role == "in":
            continue
        if member.module in frozen:
            return f"{member.name} is ignored"
        if isinstance(member.module, nn.Module) and not scope.admits(member.name):
            return f"{member.name} is outside the scope"
    if not pruning.linear and all(isinstance(m.module, nn.Linear) for m in group.producers):
        return "outputs of Linear layers are not to be pruned (pruning.linear)"
    if not group.producers:
        return "no layer whose filters could be compared makes these channels"
    return None


def _keep_of(group: ChannelGroup, pruning: Pruning) -> float:
    """The largest share asked for any of the layers that make the channels."""
    return max((lookup(pruning.keeps, m.name, pruning.keep) for m in group.producers), default=1.0)


def _global_shares(
    candidates: Sequence[tuple[ChannelGroup, float, Tensor, tuple[str, ...]]], pruning: Pruning
) -> dict[str, float]:
    """Shares per group when all channels compete: one threshold on the normalised scores of the whole model."""
    free = [c for c in candidates if not any(lookup(pruning.keeps, m.name, -1.0) >= 0 for m in c[0].producers)]
    if not free:
        return {}
    scores = [removal_scores(matrix) for _, _, matrix, _ in free]
    weights = [torch.full_like(s, float(c[0].channel_groups)) for s, c in zip(scores, free, strict=True)]
    merged, order = torch.cat(scores).sort()
    removed = torch.cat(weights)[order].cumsum(0)
    total = float(removed[-1])
    position = int(torch.searchsorted(removed, total * (1 - pruning.keep)))
    threshold = merged[min(position, len(merged) - 1)]
    shares = {}
    for score, (group, *_) in zip(scores, free, strict=True):
        shares[group.root] = max(pruning.min_keep, float((score >= threshold).double().mean()))
    return shares
