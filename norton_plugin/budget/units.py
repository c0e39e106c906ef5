"""Groups of channels that a budget may prune, each on its own: no layer is touched by two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from norton_plugin.budget.measured import MeasuredDivergence
from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.channels.layers import is_producer
from norton_plugin.recipe import DistanceCriterion, Pruning, Scope
from norton_plugin.surgery.criteria import GroupCriterion, function_of, scores_by_distance
from norton_plugin.surgery.planning import plan_groups
from norton_plugin.surgery.removed import RemovedChannels, removed_by

# Shares of the channels to keep that are tried.
_SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8)


@dataclass(frozen=True)
class Cut:
    """Channels that a unit may lose.

    Attributes:
        roots: Root channels.
        removed: What each module loses, by its first dotted name.
        divergence: Of the model's outputs, as measured with the consumers' weights fitted to what is left.
    """

    roots: tuple[int, ...]
    removed: dict[str, RemovedChannels]
    divergence: float


@dataclass(frozen=True)
class PruningUnit:
    """A group that may be pruned.

    Attributes:
        group: The group.
        cuts: The smallest first.
    """

    group: ChannelGroup
    cuts: tuple[Cut, ...]


def pruning_units(
    groups: Sequence[ChannelGroup],
    pruning: Pruning,
    measured: MeasuredDivergence,
    *,
    scope: Scope,
    ignored: set[nn.Module],
    ranking: GroupCriterion | None,
) -> list[PruningUnit]:
    """Return the groups that a budget may prune, those that touch the fewest layers first.

    Args:
        groups: Of the dense model.
        pruning: Rounding, least share, criterion, and patterns that keep all channels.
        measured: Tells what a cut costs.
        scope: Layers whose outputs may lose channels.
        ignored: Modules whose outputs must keep their width.
        ranking: In place of the criterion of ``pruning``.
    """
    score = _remembering(ranking or function_of(pruning) or _by_distance(pruning))
    roots: dict[str, dict[int, tuple[int, ...]]] = {}
    for share in _SHARES:
        if share >= pruning.min_keep:
            asked = replace(pruning, keep=share, global_ranking=False)
            plans, _ = plan_groups([g for g in groups if _simple(g, groups, measured)], asked, scope, ignored, score)
            for plan in plans:
                roots.setdefault(plan.group.root, {})[len(plan.removed)] = plan.removed
    taken: set[str] = set()
    units = []
    for group in sorted(groups, key=lambda group: len(_touched(group))):
        if group.root in roots and not taken & _touched(group):
            taken |= _touched(group)
            cuts = [_cut(group, removed, measured) for _, removed in sorted(roots[group.root].items())]
            units.append(PruningUnit(group, tuple(cuts)))
    return units


def known_units(
    groups: Sequence[ChannelGroup], cuts: Mapping[str, Sequence[tuple[tuple[int, ...], float]]] | None
) -> list[PruningUnit] | None:
    """Return the groups that a budget may prune with cuts that were measured before; None where none were.

    Args:
        groups: Of the dense model.
        cuts: By the root of the group, the root channels that go and the divergence; None where nothing is known.
    """
    by_root = {group.root: group for group in groups}
    if cuts is None or not cuts.keys() <= by_root.keys():
        return None
    units = []
    for root, known in cuts.items():
        group = by_root[root]
        found = [Cut(roots, removed_by([(group, roots)], {}), divergence) for roots, divergence in known]
        units.append(PruningUnit(group, tuple(found)))
    return units


def _by_distance(pruning: Pruning) -> GroupCriterion:
    criterion: DistanceCriterion = pruning.criterion  # type: ignore[assignment]
    return lambda group: scores_by_distance(group, criterion)[0].repeat(group.channel_groups)


def _remembering(criterion: GroupCriterion) -> Callable[[ChannelGroup], Tensor]:
    known: dict[str, Tensor] = {}

    def scores(group: ChannelGroup) -> Tensor:
        if group.root not in known:
            known[group.root] = criterion(group)
        return known[group.root]

    return scores


def _simple(group: ChannelGroup, groups: Sequence[ChannelGroup], measured: MeasuredDivergence) -> bool:
    """Tell whether a cut of a group can be measured, and a recipe can name the group by its producers."""
    producers = {member.name for member in group.producers}
    named = not any(
        other is not group and other.blocked is None and {m.name for m in other.producers} <= producers
        for other in groups
    )
    plain = all(getattr(m.module, "groups", 1) == 1 for m in (*group.producers, *group.consumers))
    consumers = [member.name for member in group.consumers]
    return named and plain and group.channel_groups == 1 and bool(consumers) and all(map(measured.settable, consumers))


def _touched(group: ChannelGroup) -> set[str]:
    """Return the layers whose cost depends on how many channels a group keeps."""
    return {m.name for m in group.members if is_producer(m.module)}


def _cut(group: ChannelGroup, roots: tuple[int, ...], measured: MeasuredDivergence) -> Cut:
    removed = removed_by([(group, roots)], {})
    changes = {}
    for name in {member.name for member in group.consumers}:
        width = measured.moments.contracts[name].weight.shape[1]
        changes[name] = measured.moments.taken_over(name, removed[name].kept_inputs(width))
    return Cut(roots, removed, measured.of(changes))
