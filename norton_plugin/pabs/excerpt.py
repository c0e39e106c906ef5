"""A few of a layer's distances, small enough to be kept in a report and drawn as a map."""

import base64
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# 48 filters are 1128 pairs, 1504 characters of base64: what a report keeps of a group, however wide the layer.
MOST_FILTERS = 48
STEPS = 255


@dataclass(frozen=True)
class DistanceExcerpt:
    """Distances between those filters of a layer that resemble each other most.

    Attributes:
        filters: Their numbers: each in the order of removal, beside it the filter nearest to it.
        removed: Those of them that were removed.
        largest: The largest distance of the whole layer, in the unit of the matrix.
        average: The mean over all pairs of the layer.
        pairs: Base64 of one byte per pair, the upper triangle row by row without the diagonal; 255 stands for
            ``largest``.
    """

    filters: tuple[int, ...]
    removed: tuple[int, ...]
    largest: float
    average: float
    pairs: str

    def after(self, removed: Collection[int]) -> "DistanceExcerpt":
        """Return the same, with those filters marked that were removed.

        Args:
            removed: Numbers of all removed filters of the layer.
        """
        return replace(self, removed=tuple(each for each in self.filters if each in removed))


def excerpt(matrix: Tensor, scores: Tensor, *, most: int = MOST_FILTERS) -> DistanceExcerpt:
    """Pick the filters that are removed first, each with its nearest, and their distances.

    Args:
        matrix: Distances (N, N), symmetric, at least 0.
        scores: (N,), ascending in the order of removal.
        most: Filters to pick at most.

    Returns:
        The excerpt; no filter is marked as removed yet.
    """
    count = len(matrix)
    others = matrix.detach().double().cpu().clone().fill_diagonal_(float("inf"))
    nearest = others.argmin(1).tolist() if count > 1 else [0]
    chosen: dict[int, None] = {}
    for filter_ in scores.argsort(stable=True).tolist():
        chosen |= dict.fromkeys((filter_, nearest[filter_]))
        if len(chosen) >= most:
            break
    filters = tuple(chosen)[:most]
    whole = matrix.detach().double().cpu()
    largest = float(whole.max())
    average = float(whole.sum()) / max(1, count * (count - 1))
    part = whole[list(filters)][:, list(filters)]
    row, column = torch.triu_indices(len(filters), len(filters), offset=1)
    levels = (part[row, column] * (STEPS / largest if largest > 0 else 0.0)).round().to(torch.uint8)
    return DistanceExcerpt(filters, (), largest, average, base64.b64encode(bytes(levels.tolist())).decode("ascii"))
