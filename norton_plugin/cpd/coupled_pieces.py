"""Clusters of equal size of one layer, and their decomposition together with those of other layers."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from norton_plugin.cpd.als import decompose_layers
from norton_plugin.cpd.coupled_exact import ClusterTerms
from norton_plugin.cpd.coupled_solve import MANY, solve
from norton_plugin.cpd.coupled_starts import random_starts, structured_start
from norton_plugin.cpd.coupled_sweep import Columns, solve_mix
from norton_plugin.cpd.options import ALSOptions
from norton_plugin.cpd.scaling import unit_scale


class Piece(NamedTuple):
    """Clusters of one layer that hold equally many filters.

    Attributes:
        layer: Place of the layer among those decomposed together.
        clusters: Which clusters, shape (k,).
        filters: Their filters, shape (k, n).
        weight: Of the layer, (N, C, Kh, Kw), or with another number of axes.
        rank: Components R of a cluster.
    """

    layer: int
    clusters: Tensor
    filters: Tensor
    weight: Tensor
    rank: int

    @property
    def size(self) -> int:
        """Filters n of a cluster."""
        return int(self.filters.shape[1])

    def filters_of_clusters(self, where: slice = slice(None)) -> Tensor:
        """Gather the weights of some of the clusters, (k, n, C, Kh, Kw)."""
        return self.weight[self.filters[where]]


class PieceResult(NamedTuple):
    """What was found for a piece.

    Attributes:
        terms: Components of the clusters.
        exponent: The clusters are ``2 ** exponent`` times what the terms stand for, shape (k,).
        sweeps: Most sweeps given to a cluster.
        fallback: Shape (k,), True where the start was kept.
    """

    terms: ClusterTerms
    exponent: Tensor
    sweeps: int
    fallback: Tensor


def single_filters(
    pieces: Sequence[Piece], options: ALSOptions, finished: Callable[[Piece], None]
) -> list[tuple[Piece, PieceResult]]:
    """Decompose clusters of one filter each as filters on their own (`decompose_layers`, K = N)."""
    if not pieces:
        return []
    results = decompose_layers(
        [piece.weight[piece.filters.squeeze(1)] for piece in pieces],
        [piece.rank for piece in pieces],
        restarts=options.restarts,
        seed=options.seed,
        chunk_bytes=options.chunk_bytes,
    )
    found = []
    for piece, result in zip(pieces, results, strict=True):
        ones = torch.ones(len(piece.clusters), 1, piece.rank, dtype=torch.float64, device=piece.weight.device)
        terms = ClusterTerms(*result.factors, ones)
        found.append((piece, PieceResult(terms, torch.zeros_like(piece.clusters), result.sweeps, result.fallback)))
        finished(piece)
    return found


def iterate(
    pieces: Sequence[Piece], options: ALSOptions, finished: Callable[[Piece], None]
) -> list[tuple[Piece, PieceResult]]:
    """Decompose clusters by ALS; those of equal shape, rank and device share batches of bounded memory.

    Args:
        pieces: Of all layers.
        options: How.
        finished: Told of every piece that is done.
    """
    groups: dict[tuple[object, ...], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault((piece.size, *piece.weight.shape[1:], piece.rank, piece.weight.device), []).append(piece)
    found = []
    for group in groups.values():
        parts: list[list[PieceResult]] = [[] for _ in group]
        count = starts_of_cluster(group[0].rank, options.restarts) - 1
        starts = [_random(piece, count, options.seed) for piece in group]
        for chunk in _chunks(group, options):
            weight = torch.cat([group[member].filters_of_clusters(where) for member, where in chunk])
            random = [_gather([starts[member][start] for member, _ in chunk], chunk) for start in range(count)]
            result = _iterate_chunk(weight, random, group[0].rank, options)
            offset = 0
            for member, where in chunk:
                span = slice(offset, offset + where.stop - where.start)
                offset = span.stop
                parts[member].append(_cut(result, span))
                if where.stop == len(group[member].clusters):
                    finished(group[member])
        found += [(piece, _join(part)) for piece, part in zip(group, parts, strict=True)]
    return found


def starts_of_cluster(rank: int, restarts: int) -> int:
    """Return how many starts a cluster gets: up to four times as many where its few components cost little.

    There local minima differ most. Many components end within about half a percent of each other from any start, and
    their first sweeps do not tell which is the best: they get one.

    Args:
        rank: Components R of the cluster.
        restarts: As asked for.
    """
    return 1 if restarts == 1 or rank > MANY else restarts * min(4, max(1, MANY // rank))


def _gather(starts: Sequence[Columns], chunk: Sequence[tuple[int, slice]]) -> Columns:
    """Put together one start of every part of a chunk."""
    parts = [[mode[where] for mode in start] for start, (_, where) in zip(starts, chunk, strict=True)]
    return Columns(*(torch.cat(mode) for mode in zip(*parts, strict=True)))


def _random(piece: Piece, count: int, seed: int) -> list[Columns]:
    """Draw the random starts of a piece."""
    channels, *kernel_size = piece.weight.shape[1:]
    return random_starts(
        len(piece.clusters),
        channels=min(channels, piece.size * math.prod(kernel_size)),
        kernel_size=kernel_size,
        rank=piece.rank,
        count=count,
        seed=seed,
    )


def _iterate_chunk(weight: Tensor, random: Sequence[Columns], rank: int, options: ALSOptions) -> PieceResult:
    """Decompose clusters (b, n, C, Kh, Kw) from a structured and the given random starts."""
    scaled, exponent = unit_scale(weight, dims=weight.dim() - 1)
    norm = torch.linalg.vector_norm(scaled.flatten(1), dim=1)
    tensor = scaled.flatten(3).transpose(2, 3) / torch.where(norm > 0, norm, 1.0)[:, None, None, None]
    core, basis = _compress(tensor)
    single = core.float() if rank > MANY else core  # eigenvectors of large matrices cost more than some sweeps
    start = structured_start(single, kernel_size=weight.shape[3:], rank=rank)
    starts = [Columns(*(column.double() for column in start))]
    starts += [Columns(*(column.to(weight.device) for column in start)) for start in random]
    columns, ridge, sweeps, fallback = solve(
        core, starts, sweeps=options.sweeps, tolerance=options.tolerance, ridge=options.ridge
    )
    if basis is not None:
        columns = columns._replace(head=basis @ columns.head)
    # Against the tensor itself: so a zero filter gets a mix of exactly zero.
    mix = solve_mix(tensor, columns, ridge=ridge)[0] * norm[:, None, None]
    terms = ClusterTerms(*(column.mT for column in columns), mix)
    return PieceResult(terms, exponent.flatten(), sweeps, fallback)


def _compress(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """Shrink the channels, and the filters, to what the other modes can tell apart; nothing is lost.

    Args:
        tensor: Shape (b, n, D, C).

    Returns:
        The core (b, min(n, D C), D, min(C, n D)) and the basis of its channels (b, C, n D), None if they are the same.
    """
    basis = None
    batch, filters, positions, channels = tensor.shape
    if filters * positions < channels:
        basis, triangle = torch.linalg.qr(tensor.flatten(1, 2).mT)
        tensor, channels = triangle.mT.reshape(batch, filters, positions, -1), filters * positions
    if positions * channels < filters:
        tensor = torch.linalg.qr(tensor.flatten(2))[1].reshape(batch, -1, positions, channels)
    return tensor.contiguous(), basis


def _chunks(pieces: Sequence[Piece], options: ALSOptions) -> Iterator[list[tuple[int, slice]]]:
    """Cut the clusters of all pieces, in order, into runs whose working memory stays below the bound."""
    filters, rank = pieces[0].size, pieces[0].rank
    channels, *kernel_size = pieces[0].weight.shape[1:]
    positions = math.prod(kernel_size)
    # Weight, tensor and its single-precision copy; the two products and their parts; Grams; starts.
    need = 8 * (4 * filters * channels * positions + 2 * (filters + channels) * (positions + 4) * rank + 6 * rank**2)
    room = options.chunk_bytes
    chunk: list[tuple[int, slice]] = []
    for member, piece in enumerate(pieces):
        begin = 0
        while begin < len(piece.clusters):
            take = min(len(piece.clusters) - begin, max(room // need, 0 if chunk else 1))
            if take:
                chunk.append((member, slice(begin, begin + take)))
                begin, room = begin + take, room - take * need
            if begin < len(piece.clusters):
                yield chunk
                room, chunk = options.chunk_bytes, []
    if chunk:
        yield chunk


def _cut(result: PieceResult, span: slice) -> PieceResult:
    """Take some of the clusters."""
    terms = ClusterTerms(*(term[span] for term in result.terms))
    return PieceResult(terms, result.exponent[span], result.sweeps, result.fallback[span])


def _join(parts: Sequence[PieceResult]) -> PieceResult:
    """Concatenate the chunks of one piece."""
    terms = ClusterTerms(*(torch.cat(tensors) for tensors in zip(*(part.terms for part in parts), strict=True)))
    exponent = torch.cat([part.exponent for part in parts])
    fallback = torch.cat([part.fallback for part in parts])
    return PieceResult(terms, exponent, max(part.sweeps for part in parts), fallback)
