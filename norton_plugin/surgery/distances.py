"""Distances between the channels of a group, gathered from all layers that make them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.channels.layers import layer_type
from norton_plugin.pabs import (
    PairwiseDistance,
    combine,
    csa_distance,
    pabs_distance,
    vbd_distance,
    vector_distance,
)
from norton_plugin.recipe import DistanceCriterion
from norton_plugin.surgery.contract import ConvContract, read_contract

# Filters of which the distances of all pairs are held: 512 MiB.
_MOST_FILTERS = 8192
Producer = tuple[nn.Module, Sequence[int], Sequence[int]]


def filter_rows(module: nn.Module) -> Tensor:
    """Return the filters of a layer as vectors: (N, D), float64, detached."""
    layer = layer_type(module)
    if layer is not None and layer.dense is not None:
        return layer.dense.weight(module).detach().flatten(1).double()
    contract = read_contract(module)
    weight: Tensor = contract.weight if isinstance(contract, ConvContract) else module.get_parameter("weight").detach()
    if getattr(module, "transposed", False):
        groups = int(module.groups)  # type: ignore[arg-type]
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1).double()


def layer_distance(module: nn.Module, *, criterion: DistanceCriterion = "pabs") -> PairwiseDistance:
    """Return the distances between all filters of one layer: (N, N).

    Under PABS a CPDBlock whose filters have components of their own is compared factor by factor. Filters that share
    components have their subspaces in common: what tells them apart is the angle between the rebuilt filters. Any
    other layer's filters are single vectors as well, a case of rank one. The other criteria compare whole filters.
    """
    if criterion == "vbd":
        return vbd_distance(filter_rows(module))
    if criterion == "csa":
        return csa_distance(filter_rows(module))
    if isinstance(module, CPDBlock) and module.mix is None:
        factors = module.factors
        return pabs_distance([factor.detach() for factor in factors], names=factors.fields)
    return vector_distance(filter_rows(module))


def group_distance(
    producers: Sequence[Producer], *, size: int, criterion: DistanceCriterion = "pabs"
) -> tuple[Tensor, tuple[str, ...]]:
    """Return the combined distances between the root channels of a group.

    Args:
        producers: Layers, with the indices of their filters and the root channel of each.
        size: N, root channels of the group.
        criterion: Which distance.

    Returns:
        Matrix (N, N): the sum of the layers' matrices, each normalised by its mean. Where several filters of one
        layer belong to one root channel, their distances are averaged. With it, the layers' notes on factors that
        do not distinguish filters.
    """
    matrices, notes = [], []
    for module, own, roots in producers:
        distance = layer_distance(module, criterion=criterion)
        matrices.append(_to_roots(distance.matrix, own, roots, size))
        notes += [note for note in distance.notes if note not in notes]
    return combine(matrices), tuple(notes)


def folded_distance(
    producers: Sequence[Producer], *, size: int, parts: int, criterion: DistanceCriterion = "pabs"
) -> tuple[Tensor, tuple[str, ...]]:
    """Return the combined distances between the channels of one of a group's equal parts; see ``group_distance``.

    Distances of the parts are added up. Where there are too many filters to hold the distances of all pairs, as in a
    layer that computes kernels, the filters of a channel in all parts are one vector.

    Args:
        producers: As of ``group_distance``.
        size: N, root channels of the group.
        parts: Divides N.
        criterion: Which distance.

    Returns:
        (N / parts, N / parts), and the notes.
    """
    if parts == 1 or size <= _MOST_FILTERS:
        matrix, notes = group_distance(producers, size=size, criterion=criterion)
        return fold(matrix, parts), notes
    between = {"vbd": vbd_distance, "csa": csa_distance}.get(criterion, vector_distance)
    found = [between(_as_one(module, own, roots, size // parts)) for module, own, roots in producers]
    return combine([distance.matrix for distance in found]), tuple(dict.fromkeys(n for d in found for n in d.notes))


def _as_one(module: nn.Module, own: Sequence[int], roots: Sequence[int], count: int) -> Tensor:
    """Return the filters of each of so many channels one after another, (count, D)."""
    order = (torch.tensor(roots) % count).argsort(stable=True)
    return filter_rows(module)[torch.tensor(own)[order]].reshape(count, -1)


def _to_roots(matrix: Tensor, own: Sequence[int], roots: Sequence[int], size: int) -> Tensor:
    if list(own) == list(roots) == list(range(size)) and len(matrix) == size:
        return matrix
    index = torch.as_tensor(own, device=matrix.device)
    target = torch.as_tensor(roots, device=matrix.device)
    places = (target[:, None], target[None, :])
    picked = matrix[index][:, index]
    total = picked.new_zeros(size, size).index_put_(places, picked, accumulate=True)
    count = picked.new_zeros(size, size).index_put_(places, torch.ones_like(picked), accumulate=True)
    return (total / count.clamp_min(1)).fill_diagonal_(0)


def fold(matrix: Tensor, parts: int) -> Tensor:
    """Sum the distances of channels at the same position of each of several equal parts.

    Args:
        matrix: (N, N).
        parts: Divides N.

    Returns:
        (N / parts, N / parts).
    """
    if parts == 1:
        return matrix
    size = matrix.shape[0] // parts
    return sum(matrix[g * size : (g + 1) * size, g * size : (g + 1) * size] for g in range(parts))  # type: ignore[return-value]
