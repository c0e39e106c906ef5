"""Spatial SVD of layers: the best vertical and horizontal convolution of a size (docs/method.md, section 1)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from norton_plugin.cpd.als import check_weight
from norton_plugin.cpd.scaling import root_of_power, unit_scale
from norton_plugin.cpd.spatial_factors import SpatialFactors
from norton_plugin.errors import DecompositionError


@dataclass(frozen=True)
class SpatialResult:
    """Factors of one layer and how good they are.

    Attributes:
        factors: Float64 factors on the device of the weight; both factors of a component have the same norm.
        nmse: ``||W[n] - W^[n]||^2 / ||W[n]||^2`` per filter, shape (N,), float64; 0 for a zero filter.
        layer_nmse: ``||W - W^||^2 / ||W||^2`` of the whole layer; 0 for a zero weight.
    """

    factors: SpatialFactors
    nmse: Tensor
    layer_nmse: float


def full_spatial_rank(filters: int, channels: int, kernel_size: tuple[int, int]) -> int:
    """Return the rank at which the spatial SVD of one channel group is exact: ``min(C Kh, N Kw)``.

    Args:
        filters: Filters N of the group.
        channels: Channels C that one filter sees.
        kernel_size: (Kh, Kw).
    """
    return min(channels * kernel_size[0], filters * kernel_size[1])


@torch.no_grad()
def decompose_spatial(
    weights: Sequence[Tensor], ranks: Sequence[int], *, groups: Sequence[int] | None = None
) -> list[SpatialResult]:
    """Give layers the best approximation by a vertical and a horizontal convolution of so many components.

    It is the truncated SVD of the (C Kh) x (N Kw) matrix of every channel group (Jaderberg et al., arXiv:1405.3866),
    in float64, matrices of equal shape in one batch; a weight that comes at several ranks is decomposed once. The
    first of the largest entries of a component's vertical factor is positive, so equal weights give equal factors.

    Args:
        weights: Weights of shape (N, C, Kh, Kw), any floating dtype and device; all lengths may differ.
        ranks: R per layer, components of each channel group: from 1 to `full_spatial_rank` of one group.
        groups: Channel groups G per layer, dividing N; 1 by default.

    Returns:
        One result per weight, in the same order.

    Raises:
        DecompositionError: A weight, a rank or a number of groups that is wrong.
    """
    given = [1] * len(weights) if groups is None else list(groups)
    if not len(weights) == len(ranks) == len(given):
        raise DecompositionError(
            f"Got {len(weights)} weights, {len(ranks)} ranks and {len(given)} numbers of groups; give one each."
        )
    for weight, rank, count in zip(weights, ranks, given, strict=True):
        _check(weight, rank, count)
    parts = _singular(weights, given)
    results = []
    for weight, rank, count in zip(weights, ranks, given, strict=True):
        vertical, horizontal = (part[:, :rank] for part in parts[id(weight), count])
        filters, channels, height, width = weight.shape
        factors = SpatialFactors(
            vertical.reshape(count * rank, channels, height).clone(),
            horizontal.reshape(count, rank, filters // count, width).transpose(1, 2).reshape(filters, rank, width),
        )
        results.append(_result(factors, weight))
    return results


def _check(weight: Tensor, rank: int, groups: int) -> None:
    check_weight(weight, 1, dimensions=(4,))
    filters, channels, height, width = weight.shape
    if not _whole(groups) or groups < 1 or filters % groups:
        raise DecompositionError(
            f"{groups} groups were given for {filters} filters; expected a divisor of their number."
        )
    full = full_spatial_rank(filters // groups, channels, (height, width))
    if not _whole(rank) or not 1 <= rank <= full:
        raise DecompositionError(
            f"Rank {rank} was asked for filters of shape {tuple(weight.shape[1:])} in {groups} group(s); it must be an "
            f"integer from 1 to {full}, where the spatial SVD is already exact."
        )


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _singular(weights: Sequence[Tensor], groups: Sequence[int]) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """Return, by identity of the weight and its groups, all components: (G, K, C Kh) and (G, K, n Kw)."""
    layers = {(id(weight), count): weight for weight, count in zip(weights, groups, strict=True)}
    alike: dict[tuple[object, ...], list[tuple[int, int]]] = defaultdict(list)
    for key, weight in layers.items():
        filters, *others = weight.shape
        alike[(filters // key[1], *others, weight.device)].append(key)
    found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for keys in alike.values():
        matrices = torch.cat([_matrices(layers[key], key[1]) for key in keys])
        left, right = _components(matrices)
        sizes = [key[1] for key in keys]
        found |= dict(zip(keys, zip(left.split(sizes), right.split(sizes), strict=True), strict=True))
    return found


def _matrices(weight: Tensor, groups: int) -> Tensor:
    """Unfold the groups of a weight: (G, C Kh, n Kw), float64."""
    grouped = weight.detach().double().unflatten(0, (groups, -1))  # (G, n, C, Kh, Kw)
    return grouped.permute(0, 2, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def _components(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return all components of matrices (b, H, W), the largest first: (b, K, H) and (b, K, W), of equal norms."""
    scaled, exponent = unit_scale(matrices, dims=2)
    try:
        left = torch.linalg.svd(scaled, full_matrices=False)[0]
    except torch.linalg.LinAlgError:  # divide and conquer may not converge; the eigenvectors span the same
        left = torch.linalg.eigh(scaled @ scaled.mT)[1].flip(-1)[..., : min(scaled.shape[1:])]
    largest = left.gather(1, left.abs().argmax(1, keepdim=True))
    left = torch.where(largest < 0, -left, left).mT
    # Not s V': so a zero filter gets factors of exactly zero.
    right = left @ scaled
    values = torch.linalg.vector_norm(right, dim=2, keepdim=True)
    sound = values > values.amax(1, keepdim=True) * torch.finfo(values.dtype).eps  # below is nothing but rounding
    root = values.sqrt()
    power = root_of_power(exponent, degree=2)
    return (
        torch.where(sound, left * root, 0.0) * power,
        torch.where(sound, right / torch.where(sound, root, 1.0), 0.0) * power,
    )


def _result(factors: SpatialFactors, weight: Tensor) -> SpatialResult:
    nmse = factors.nmse(weight)
    energy = unit_scale(weight, dims=4)[0].flatten(1).square().sum(1)
    total = float(energy.sum())
    layer = float(torch.where(energy > 0, nmse * energy, 0.0).sum()) / total if total else 0.0
    return SpatialResult(factors, nmse, layer)
