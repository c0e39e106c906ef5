"""By what the channels of a group are ranked: a criterion of the recipe, or any function of a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.errors import SurgeryError
from norton_plugin.pabs import DistanceExcerpt, excerpt, removal_scores
from norton_plugin.recipe import Criterion
from norton_plugin.surgery.distances import fold, group_distance

GroupCriterion = Callable[[ChannelGroup], Tensor]


def scores_by_distance(group: ChannelGroup, criterion: Criterion) -> tuple[Tensor, tuple[str, ...], DistanceExcerpt]:
    """Score the channels of a group by the distances between the filters that produce them.

    Args:
        group: Has at least one producer.
        criterion: Which distance.

    Returns:
        Scores of the channels of one of the group's equal parts, (size / parts,), upwards in the order of removal;
        notes on factors that tell no filters apart; and a few of the distances, for reports.
    """
    producers = [(m.module, m.indices, m.roots) for m in group.producers if isinstance(m.module, nn.Module)]
    matrix, notes = group_distance(producers, size=group.size, criterion=criterion)
    folded = fold(matrix, group.channel_groups)
    scores = removal_scores(folded)
    return scores, notes, excerpt(folded, scores)


def scores_by_function(group: ChannelGroup, criterion: GroupCriterion) -> Tensor:
    """Score the channels of a group by a user's function.

    Args:
        group: What the function is given.
        criterion: Returns one score per root channel, (size,); channels of low scores are removed first.

    Returns:
        Scores of the channels of one of the group's equal parts, (size / parts,) in float64: the parts' added up.

    Raises:
        SurgeryError: It returns anything else.
    """
    scores = criterion(group)
    if not isinstance(scores, Tensor) or scores.shape != (group.size,):
        found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise SurgeryError(f"the criterion gave {found}; expected a tensor of one score per channel, ({group.size},)")
    scores = scores.detach().double().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise SurgeryError("the criterion gave scores that are NaN or infinite")
    return scores.view(group.channel_groups, -1).sum(0)


def on_modules_of(model: nn.Module, criterion: GroupCriterion) -> GroupCriterion:
    """Show a criterion the layers of another model in place of a group's own, by their names.

    Decomposition replaces weights, and with them their gradients; a criterion that needs those looks at the dense
    model, whose channels are numbered alike.

    Args:
        model: Has the modules of the one that the groups are of, under the same names.
        criterion: To be shown its layers.
    """
    modules = dict(model.named_modules(remove_duplicate=False))

    def shown(group: ChannelGroup) -> Tensor:
        members = (replace(m, module=modules.get(m.name, m.module)) for m in group.members)
        return criterion(replace(group, members=tuple(members)))

    return shown
