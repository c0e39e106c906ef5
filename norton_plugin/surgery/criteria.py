"""By what the channels of a group are ranked: a criterion of the recipe, or any function of a group."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.pabs import DistanceExcerpt, excerpt, removal_scores
from norton_plugin.recipe import DistanceCriterion, Pruning
from norton_plugin.surgery.distances import filter_rows, folded_distance

GroupCriterion = Callable[[ChannelGroup], Tensor]


def scores_by_distance(
    group: ChannelGroup, criterion: DistanceCriterion
) -> tuple[Tensor, tuple[str, ...], DistanceExcerpt]:
    """Score the channels of a group by the distances between the filters that produce them.

    Args:
        group: Has at least one producer.
        criterion: Which distance.

    Returns:
        Scores of the channels of one of the group's equal parts, (size / parts,), upwards in the order of removal;
        notes on factors that tell no filters apart; and a few of the distances, for reports.
    """
    producers = [(m.module, m.indices, m.roots) for m in group.producers if isinstance(m.module, nn.Module)]
    sizes = {"size": group.size, "parts": group.channel_groups}
    folded, notes = folded_distance(producers, **sizes, criterion=criterion)
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


def scores_by_norm(group: ChannelGroup) -> Tensor:
    """Score channels by the norms of the filters that compute them; each layer's have a mean of one.

    Args:
        group: Has at least one producer.

    Returns:
        One score per root channel, (size,).
    """
    scores = torch.zeros(group.size, dtype=torch.float64)
    for member in group.producers:
        if not isinstance(member.module, nn.Module):
            continue
        norms = filter_rows(member.module).norm(dim=1).cpu()[list(member.indices)]
        norms = norms / norms.mean().clamp_min(torch.finfo(norms.dtype).tiny)
        roots = torch.tensor(member.roots)
        count = torch.bincount(roots, minlength=group.size).clamp_min(1)
        scores += torch.zeros_like(scores).index_add_(0, roots, norms) / count
    return scores


def scores_at_random(group: ChannelGroup, *, seed: int) -> Tensor:
    """Score channels at random; the same for equal seeds and names of the group.

    Returns:
        One score per root channel, (size,).
    """
    generator = torch.Generator().manual_seed((seed + zlib.crc32(group.root.encode())) % 2**63)
    return torch.rand(group.size, generator=generator, dtype=torch.float64)


def function_of(pruning: Pruning) -> GroupCriterion | None:
    """Return the function of a group that a recipe names; None for a distance.

    Raises:
        RecipeError: It needs images.
    """
    if pruning.criterion == "output":
        raise RecipeError(
            "pruning.criterion is 'output', which needs unlabelled images: use compress(..., calibration=batches), or "
            "give criterion=calibration.OutputCriterion(model, batches, ...)"
        )
    if pruning.criterion == "l2":
        return scores_by_norm
    return partial(scores_at_random, seed=pruning.seed) if pruning.criterion == "random" else None


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
