"""Distances between the filters of one layer: PABS (the default), plain vectors, and how to combine layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from norton_plugin.errors import DecompositionError
from norton_plugin.pabs.angles import angles_between, check_factor, row_subspaces

CPD_NAMES = ("head", "vertical", "horizontal")


@dataclass(frozen=True)
class PairwiseDistance:
    """Distances between all filters of a layer, and what they were made from.

    Attributes:
        matrix: Float64 tensor (N, N), symmetric, >= 0, zero diagonal. A zero filter is at distance zero from
            every other one, so that a removal order takes it first.
        criterion: What was computed: "pabs", "vectors", "vbd" or "csa".
        informative: Names of the factors that told filters apart; empty when nothing did.
        notes: One plain sentence for every factor that could not contribute and every fallback taken.
    """

    matrix: Tensor
    criterion: str
    informative: tuple[str, ...]
    notes: tuple[str, ...] = ()


def pabs_distance(
    factors: Sequence[Tensor],
    *,
    weight: Tensor | None = None,
    names: Sequence[str] | None = None,
    chunk_bytes: int | None = None,
) -> PairwiseDistance:
    """Sum over the factors of the largest principal angle between the filters' row spans.

    distance(i, j) = sum_F theta_F(i, j), docs/method.md, section 2. Invariant to the scaling, permutation and
    mixing of components within a factor. A factor whose every span is the whole space (R >= D) adds nothing and is
    named in the notes. When no factor is left, the filters are compared as vectors instead (`vector_distance` of
    the reconstructed filters, or of `weight`), and the notes say so.

    Args:
        factors: Floating tensors (N, R, D_k), e.g. head, vertical and horizontal; components that are zero in one
            of them do not exist in the others.
        weight: The filters themselves (N, ...), used by the fallback instead of their reconstruction.
        names: One name per factor, for the notes; default head, vertical, horizontal for three factors.
        chunk_bytes: See `largest_angle_matrix`.

    Returns:
        Distances in radians, in [0, number of informative factors * pi/2].

    Raises:
        DecompositionError: No factors, factors that differ in N or R, or that are not finite (N, R, D) tensors;
            a weight or names of another length.
    """
    labels = _check_pabs(factors, weight, names)
    alive = torch.stack([factor.detach().abs().amax(2) > 0 for factor in factors]).all(0)
    all_alive = bool(alive.all())
    matrix = torch.zeros(len(alive), len(alive), dtype=torch.float64, device=alive.device)
    informative, notes = [], []
    for label, factor in zip(labels, factors, strict=True):
        spans = row_subspaces(factor if all_alive else factor * alive.unsqueeze(2))
        if spans.informative:
            matrix += angles_between(spans, chunk_bytes=chunk_bytes)
            informative.append(label)
        else:
            size = f"{factor.shape[1]} components in {factor.shape[2]} dimensions"
            notes.append(f"{label}: {size} span the whole space, so every angle is zero")
    if informative:
        return PairwiseDistance(matrix, "pabs", tuple(informative), tuple(notes))
    rows = _reconstruct(factors) if weight is None else weight
    fallback = vector_distance(rows, chunk_bytes=chunk_bytes)
    notes.append("no factor tells filters apart: compared whole filters as vectors instead")
    return PairwiseDistance(fallback.matrix, fallback.criterion, fallback.informative, (*notes, *fallback.notes))


def vector_distance(rows: Tensor, *, chunk_bytes: int | None = None) -> PairwiseDistance:
    """Angle between the lines through the filters taken as vectors: arccos |cos|.

    This is PABS with one factor of rank one: what 1x1 convs and Linear layers use (docs/method.md, section 2).

    Args:
        rows: Floating tensor (N, ...), flattened to (N, D).
        chunk_bytes: See `largest_angle_matrix`.

    Returns:
        Distances in radians, in [0, pi/2].

    Raises:
        DecompositionError: The tensor is empty, not floating, not finite or has fewer than two dimensions.
    """
    spans = row_subspaces(flatten_filters(rows).unsqueeze(1))
    if spans.informative:
        return PairwiseDistance(angles_between(spans, chunk_bytes=chunk_bytes), "vectors", ("weight",))
    note = "weight: vectors that are one-dimensional or zero have no angle between them"
    return PairwiseDistance(angles_between(spans), "vectors", (), (note,))


def combine(distances: Sequence[PairwiseDistance | Tensor], *, normalise: Literal["mean", "max"] = "mean") -> Tensor:
    """Return one distance matrix for channels that are removed together in several layers.

    Each member is divided by its mean (or largest) off-diagonal distance, so that a layer with more factors or a
    larger angle range does not decide alone, then the members are added. A member without any non-zero distance
    carries no information and adds nothing.

    Args:
        distances: Matrices (N, N), one per member layer, filters in the same order.
        normalise: Which off-diagonal statistic becomes one.

    Returns:
        Float64 tensor (N, N), symmetric, zero diagonal, without unit.

    Raises:
        DecompositionError: No members, matrices that differ in size, or invalid ones (see `check_distance`); an
            unknown `normalise`.
    """
    if normalise not in ("mean", "max"):
        raise DecompositionError(f"normalise is {normalise!r}; expected 'mean' or 'max'. Use one of the two.")
    matrices = [check_distance(member) for member in distances]
    sizes = sorted({len(matrix) for matrix in matrices})
    if len(sizes) != 1:
        raise DecompositionError(
            f"combine got matrices of sizes {sizes}; expected at least one, all of the same size. Pass one matrix "
            "per member of the group, over the same channels."
        )
    total = torch.zeros_like(matrices[0])
    for matrix in matrices:
        pairs = max(1, len(matrix) * (len(matrix) - 1))
        scale = float(matrix.sum() / pairs if normalise == "mean" else matrix.max())
        if scale > 0:
            total += matrix.to(total.device) / scale
    return total


def check_distance(distance: PairwiseDistance | Tensor) -> Tensor:
    """Return the matrix as float64 (N, N) after checking that it is one.

    Raises:
        DecompositionError: The matrix is not square, not finite, negative somewhere, or not symmetric to within
            1e-9 of its largest entry.
    """
    matrix = distance.matrix if isinstance(distance, PairwiseDistance) else distance
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) == 0:
        raise DecompositionError(
            f"a distance matrix came with shape {tuple(matrix.shape)}; expected (N, N) with N >= 1. Pass the matrix "
            "of pabs_distance, vector_distance, vbd_distance, csa_distance or combine."
        )
    matrix = matrix.detach().to(torch.float64)
    lowest, highest = (float(bound) for bound in matrix.aminmax())
    if not (lowest >= 0 and math.isfinite(highest)):
        raise DecompositionError(
            f"a distance matrix of {len(matrix)} filters holds NaN, infinite or negative values; expected finite "
            "values >= 0. Check the weights it was made from."
        )
    gap = float((matrix - matrix.mT).abs().max())
    if gap > 1e-9 * float(matrix.max()):
        raise DecompositionError(
            f"a distance matrix is not symmetric: entries differ from their mirror image by up to {gap:.3g}; "
            "expected d(i, j) = d(j, i). Symmetrise it first, e.g. (d + d.T) / 2."
        )
    return matrix


def flatten_filters(weight: Tensor) -> Tensor:
    """Return the filters (N, ...) as rows (N, D), checked.

    Raises:
        DecompositionError: The tensor is empty, not floating, not finite or has fewer than two dimensions.
    """
    if weight.ndim < 2 or weight.numel() == 0:
        raise DecompositionError(
            f"filters came with shape {tuple(weight.shape)}; expected (N, ...) with at least two dimensions and "
            "no empty one. Pass the weight of a conv or Linear layer."
        )
    rows = weight.detach().flatten(1)
    check_factor(rows.unsqueeze(1))
    return rows


def _reconstruct(factors: Sequence[Tensor]) -> Tensor:
    """Sum over the components of the outer products, as rows (N, prod D_k)."""
    product = factors[0].detach().to(torch.float64)
    for factor in factors[1:]:
        product = torch.einsum("nra,nrb->nrab", product, factor.detach().to(torch.float64)).flatten(2)
    return product.sum(1)


def _check_pabs(factors: Sequence[Tensor], weight: Tensor | None, names: Sequence[str] | None) -> list[str]:
    for factor in factors:
        check_factor(factor)
    shapes = [tuple(factor.shape) for factor in factors]
    if len({shape[:2] for shape in shapes}) != 1:
        raise DecompositionError(
            f"pabs_distance got factors of shapes {shapes}; expected at least one, all with the same filters N "
            "and components R. Pass the factors of one layer."
        )
    if weight is not None and len(weight) != shapes[0][0]:
        raise DecompositionError(
            f"weight holds {len(weight)} filters, the factors {shapes[0][0]}; expected the same. Pass the weight "
            "that was decomposed."
        )
    if names is None:
        return list(CPD_NAMES) if len(factors) == 3 else [f"factor {k}" for k in range(len(factors))]
    if len(names) != len(factors):
        raise DecompositionError(
            f"{len(names)} names came for {len(factors)} factors; expected one each. Leave names out or complete it."
        )
    return list(names)
