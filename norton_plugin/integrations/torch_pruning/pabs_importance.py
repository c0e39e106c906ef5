"""PABS as an importance of Torch-Pruning."""

from __future__ import annotations

import torch
import torch_pruning as tp
from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.errors import SurgeryError
from norton_plugin.pabs import removal_scores
from norton_plugin.recipe import DistanceCriterion
from norton_plugin.surgery.distances import group_distance

_PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear, ConvBlock, CPDLinear)


class PABSImportance(tp.importance.Importance):
    """Score the channels of a Torch-Pruning group by when PABS would remove them (NORTON, section III-C).

    The distance matrices of all layers whose outputs are coupled are combined, each normalised. Sorting the scores
    upwards gives the removal order.

    Args:
        criterion: ``"pabs"``, ``"vbd"`` or ``"csa"``.
    """

    def __init__(self, *, criterion: DistanceCriterion = "pabs") -> None:
        self.criterion = criterion

    @torch.no_grad()
    def __call__(self, group: tp.Group) -> Tensor:
        """Return the scores of the group's root channels, (N,); larger is kept longer."""
        producers = producers_of(group)
        if not producers:
            raise SurgeryError(f"no layer of the group of {group[0].dep.target.name} has filters to compare")
        matrix, _ = group_distance(producers, size=len(group[0].idxs), criterion=self.criterion)
        return removal_scores(matrix)


def producers_of(group: tp.Group) -> list[tuple[nn.Module, list[int], list[int]]]:
    """Return the layers whose filters produce the group's channels, with (own index, root index) lists.

    Args:
        group: A group that lists all channels of its root.
    """
    found: list[tuple[nn.Module, list[int], list[int]]] = []
    for item in group:
        module, handler = item.dep.target.module, item.dep.handler
        if not isinstance(module, _PRODUCERS):
            continue
        is_output = group._DG.is_out_channel_pruning_fn(handler)
        depthwise = getattr(module, "groups", 1) == getattr(module, "out_channels", 0) > 1
        if is_output and not depthwise:
            found.append((module, [int(i) for i in item.idxs], [int(i) for i in item.root_idxs]))
    return found
