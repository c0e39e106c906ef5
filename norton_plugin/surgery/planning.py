"""Decide which channels of a model are removed, before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.pabs import DistanceExcerpt
from norton_plugin.patterns import lookup
from norton_plugin.reasons import Cause, Reason
from norton_plugin.recipe import DistanceCriterion, Pruning, Scope
from norton_plugin.surgery.counts import channels_to_keep
from norton_plugin.surgery.criteria import GroupCriterion, scores_by_distance, scores_by_function
from norton_plugin.surgery.report import PrunedGroup, Skipped
from norton_plugin.surgery.surgeon import Plan


def plan_groups(
    groups: Sequence[ChannelGroup],
    pruning: Pruning,
    scope: Scope,
    frozen: set[nn.Module],
    criterion: GroupCriterion | None = None,
) -> tuple[list[Plan], list[Skipped]]:
    """Decide for every group which channels are removed.

    Args:
        groups: Of the graph.
        pruning: Shares, rounding, criterion.
        scope: Layers whose outputs may lose channels.
        frozen: Modules whose outputs must keep their width.
        criterion: Ranks the channels; by the distance that ``pruning.criterion`` names where there is none.

    Returns:
        A plan for each group that loses channels, and the others with their reasons.
    """
    candidates: list[_Candidate] = []
    skipped: list[Skipped] = []
    for group in groups:
        keep = _keep_of(group, pruning)
        found = _why_not(group, keep, pruning, scope, frozen) or _scored(group, keep, pruning, criterion)
        if isinstance(found, Cause):
            skipped.append(Skipped(group.root, found))
        else:
            candidates.append(found)
    shares = _global_shares(candidates, pruning) if pruning.global_ranking else {}
    plans = []
    for candidate in candidates:
        group, keep = candidate.group, shares.get(candidate.group.root, candidate.keep)
        count = _count(group, keep, pruning)
        if count == group.size:
            ranked = keep == 1 and group.root in shares
            cause = Reason.RANKED_HIGHER.because() if ranked else _rounds(group, keep, pruning)
            skipped.append(Skipped(group.root, cause))
            continue
        parts = group.channel_groups
        gone = candidate.scores.argsort()[: (group.size - count) // parts].tolist()
        removed = tuple(sorted(part * (group.size // parts) + i for part in range(parts) for i in gone))
        members = tuple(dict.fromkeys(m.name for m in group.producers))
        seen = candidate.distances and candidate.distances.after(frozenset(gone))
        record = PrunedGroup(group.root, members, group.size, count, keep, candidate.notes, distances=seen)
        plans.append(Plan(group, removed, record))
    return plans, skipped


@dataclass(frozen=True)
class _Candidate:
    """A group that may lose channels.

    Attributes:
        group: The group.
        keep: Share asked for.
        scores: Importance of the channels of one of its equal parts; the lowest are removed first.
        notes: On factors that do not distinguish filters.
        distances: A few of them, None where a user's function gave the scores.
    """

    group: ChannelGroup
    keep: float
    scores: Tensor
    notes: tuple[str, ...]
    distances: DistanceExcerpt | None = None


def _why_not(group: ChannelGroup, keep: float, pruning: Pruning, scope: Scope, frozen: set[nn.Module]) -> Cause | None:
    """Return why a group keeps all its channels, or None."""
    cause = group.blocked or _outside(group, pruning, scope, frozen)
    if keep == 1:
        return cause or Reason.ALL_KEPT.because()
    if pruning.global_ranking or _count(group, keep, pruning) < group.size:
        return cause
    if cause is None:
        return _rounds(group, keep, pruning)
    if not cause.blocks:
        return cause
    # Even without the first reason, no channel could be removed.
    return Reason.ROUNDED_ANYWAY.because(other=cause, size=group.size, keep=keep, round_to=pruning.round_to)


def _rounds(group: ChannelGroup, keep: float, pruning: Pruning) -> Cause:
    return Reason.ROUNDED.because(size=group.size, keep=keep, round_to=pruning.round_to)


def _scored(group: ChannelGroup, keep: float, pruning: Pruning, criterion: GroupCriterion | None) -> _Candidate | Cause:
    """Rank the channels of a group; one that cannot be ranked is left, with the reason."""
    try:
        if criterion is not None:
            return _Candidate(group, keep, scores_by_function(group, criterion), ())
        return _Candidate(group, keep, *scores_by_distance(group, cast(DistanceCriterion, pruning.criterion)))
    except Exception as error:
        return Reason.NOT_COMPARABLE.from_error(error)


def _count(group: ChannelGroup, keep: float, pruning: Pruning) -> int:
    return channels_to_keep(group.size, keep, round_to=pruning.round_to, parts=group.channel_groups)


def _outside(group: ChannelGroup, pruning: Pruning, scope: Scope, frozen: set[nn.Module]) -> Cause | None:
    """Return why the user does not want this group pruned, or None."""
    for member in group.members:
        if member.role == "in":
            continue
        if member.module in frozen:
            return Reason.IGNORED.because(layer=member.name)
        if isinstance(member.module, nn.Module) and not scope.admits(member.name):
            return Reason.MEMBER_OUTSIDE_SCOPE.because(layer=member.name)
    if not pruning.linear and all(isinstance(m.module, nn.Linear) for m in group.producers):
        return Reason.LINEAR_KEPT.because()
    if not group.producers:
        return Reason.NO_FILTERS.because()
    return None


def _keep_of(group: ChannelGroup, pruning: Pruning) -> float:
    """Return the largest share asked for any of the layers that produce the channels."""
    return max((lookup(pruning.keeps, m.name, pruning.keep) for m in group.producers), default=1.0)


def _global_shares(candidates: Sequence[_Candidate], pruning: Pruning) -> dict[str, float]:
    """Return shares per group when all channels compete: one threshold on the normalised scores of the whole model."""
    free = [c for c in candidates if not any(lookup(pruning.keeps, m.name, -1.0) >= 0 for m in c.group.producers)]
    if not free:
        return {}
    weights = [torch.full_like(c.scores, float(c.group.channel_groups)) for c in free]
    merged, order = torch.cat([c.scores for c in free]).sort()
    removed = torch.cat(weights)[order].cumsum(0)
    total = float(removed[-1])
    position = int(torch.searchsorted(removed, total * (1 - pruning.keep)))
    threshold = merged[min(position, len(merged) - 1)]
    shares = {}
    for candidate in free:
        share = float((candidate.scores >= threshold).double().mean())
        shares[candidate.group.root] = max(pruning.min_keep, share)
    return shares
