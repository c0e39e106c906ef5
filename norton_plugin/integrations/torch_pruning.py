"""Torch-Pruning's view of a CPDBlock, and of filters that are compared by PABS.

Both work with a plain Torch-Pruning pruner::

    pruner = tp.pruner.BasePruner(model, example, importance=PABSImportance(), pruning_ratio=0.5,
                                  customized_pruners={CPDBlock: CPDBlockPruner()},
                                  root_module_types=[nn.Conv2d, nn.Linear, CPDBlock], ignored_layers=[model.fc],
                                  in_channel_groups={}, out_channel_groups={}, num_heads={}, channel_groups={})
    pruner.step()
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch_pruning as tp
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import SurgeryError
from norton_plugin.pabs import removal_scores
from norton_plugin.recipe import Criterion
from norton_plugin.surgery.distances import group_distance


class CPDBlockPruner(tp.pruner.BasePruningFunc):
    """Prunes a CPDBlock by index selects on its factors.

    Register it for the exact class, and list ``CPDBlock`` among ``root_module_types``: Torch-Pruning passes silently
    over classes it was not told of.
    """

    TARGET_MODULES = CPDBlock

    def prune_out_channels(self, layer: CPDBlock, idxs: Sequence[int]) -> CPDBlock:
        """Removes filters; raises SurgeryError on indices out of range."""
        layer.select_(_kept(layer.out_channels, idxs, layer), "filters")
        return layer

    def prune_in_channels(self, layer: CPDBlock, idxs: Sequence[int]) -> CPDBlock:
        """Removes input channels; a grouped block loses the same ones in each of its groups."""
        kept = _kept(layer.in_channels, idxs, layer)
        per_group = layer.in_channels // layer.groups
        local = [[i % per_group for i in kept if i // per_group == g] for g in range(layer.groups)]
        if any(group != local[0] for group in local):
            raise SurgeryError(
                f"a block of {layer.groups} groups must lose the same channels in each; asked to keep {local}"
            )
        layer.select_(local[0], "channels")
        return layer

    def get_out_channels(self, layer: CPDBlock) -> int:
        """Number of filters."""
        return layer.out_channels

    def get_in_channels(self, layer: CPDBlock) -> int:
        """Channels of the input."""
        return layer.in_channels

    def get_in_channel_groups(self, layer: CPDBlock) -> int:
        """Groups the input channels fall into."""
        return layer.groups

    def get_out_channel_groups(self, layer: CPDBlock) -> int:
        """Groups the filters fall into."""
        return layer.groups


def _kept(size: int, removed: Sequence[int], layer: nn.Module) -> list[int]:
    gone = {int(i) for i in removed}
    if any(not 0 <= i < size for i in gone) or len(gone) >= size:
        raise SurgeryError(f"cannot remove channels {sorted(gone)} of the {size} of {layer}")
    return [i for i in range(size) if i not in gone]


class PABSImportance(tp.importance.Importance):
    """Importance of the channels of a Torch-Pruning group: when PABS would remove them (NORTON, section III-C).

    The distance matrices of all layers whose outputs are coupled are combined, each normalised. Sorting the scores
    upwards gives the removal order.

    Args:
        criterion: ``"pabs"``, ``"vbd"`` or ``"csa"``.
    """

    def __init__(self, *, criterion: Criterion = "pabs") -> None:
        self.criterion = criterion

    @torch.no_grad()
    def __call__(self, group: tp.Group) -> Tensor:
        """Scores of the group's root channels: (N,), larger is kept longer."""
        producers = producers_of(group)
        if not producers:
            raise SurgeryError(f"no layer of the group of {group[0].dep.target.name} has filters to compare")
        matrix, _ = group_distance(producers, size=len(group[0].idxs), criterion=self.criterion)
        return removal_scores(matrix)


def producers_of(group: tp.Group) -> list[tuple[nn.Module, list[int], list[int]]]:
    """Layers whose filters make the group's channels, with (own index, root index) lists.

    Args:
        group: A group that lists all channels of its root.
    """
    found: list[tuple[nn.Module, list[int], list[int]]] = []
    for item in group:
        module, handler = item.dep.target.module, item.dep.handler
        if not isinstance(module, nn.Conv2d | nn.Linear | CPDBlock | nn.Conv1d | nn.Conv3d | nn.ConvTranspose2d):
            continue
        is_output = group._DG.is_out_channel_pruning_fn(handler)
        depthwise = getattr(module, "groups", 1) == getattr(module, "out_channels", 0) > 1
        if is_output and not depthwise:
            found.append((module, [int(i) for i in item.idxs], [int(i) for i in item.root_idxs]))
    return found
