"""How much of a layer's weight each size loses, foretold for all sizes from one set of singular values.

The spatial SVD and layers without spatial factors are truncated SVDs, so their errors are exact. For CP components
there is a bound: in the singular basis of kernel rows and of kernel columns, a weight is a sum of Kh Kw matrices
(N x C), each a sum of its singular components, and every such component is one of CP. Keeping the largest R of all of
them loses the squares of the others. ALS finds better ones, by a power that grows with the share of components kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from norton_plugin.surgery.layouts import Layout
from norton_plugin.surgery.targets import Target

# log(NMSE of ALS) / log(bound) = first + second * (components kept / all), from the 18 3x3 layers of ResNet-20 at 15,
# 30, 50 and 80 % of the MACs, where it is off by less than 0.2.
_POWERS = {"layer": (1.1, 2.0), "filter": (1.0, 0.5)}
_MOST = 1 - 1e-9  # share of a weight that counts as lost at most


def added_error(lost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what lost shares of weights count beside each other, ``-log(1 - share)``: 0 for nothing lost."""
    return -np.log1p(-lost.clip(0, _MOST))


@torch.no_grad()
def weight_errors(target: Target, layouts: Sequence[Layout], weight: Tensor | None = None) -> NDArray[np.float64]:
    """Return ``||W - W^||^2 / ||W||^2`` as foretold for each layout of a layer; never more for a larger size.

    Args:
        target: The layer.
        layouts: Of the levels "filter", "layer" and "spatial".
        weight: In place of the layer's own.
    """
    weight = (target.contract.weight if weight is None else weight).detach().double()
    curves: dict[str, Tensor] = {}
    for level in dict.fromkeys(layout.level for layout in layouts):
        grouped = weight.unflatten(0, (target.shape.groups, -1))
        curves[level] = _lost(grouped, level, exact=target.shape.pointwise)
    return np.array(
        [float(curves[layout.level][min(layout.rank, len(curves[layout.level])) - 1]) for layout in layouts]
    )


def _lost(weight: Tensor, level: str, *, exact: bool) -> Tensor:
    """Return the share of the energy of a weight (G, N, C, Kh, Kw) that is lost at each rank from 1 on."""
    if level == "spatial":
        values = _squares(weight.permute(0, 2, 3, 1, 4).flatten(3, 4).flatten(1, 2))
    else:
        if level == "filter":  # every filter is a group of its own, and its C x 1 matrices have one component each
            weight = weight.flatten(0, 1)[:, None]
        values = _squares(_in_kernel_basis(weight)).flatten(1)
    values = values.sort(dim=1, descending=True).values
    total = values.sum()
    if not total > 0:
        return torch.zeros(values.shape[1], dtype=values.dtype)
    # Summed from the smallest on, so that small errors are exact.
    lost = (values.flip(1).cumsum(1).flip(1) - values).sum(0) / total
    if level == "spatial" or exact:
        return lost.cpu()
    first, second = _POWERS[level]
    share = torch.arange(1, len(lost) + 1, dtype=lost.dtype, device=lost.device) / len(lost)
    return lost.clamp(0, 1).pow(first + second * share).cpu()


def _in_kernel_basis(weight: Tensor) -> Tensor:
    """Return the matrices (G, Kh Kw, N, C) of a weight in the singular basis of its kernel rows and columns."""
    places = range(3, weight.dim())
    unfolded = [weight.movedim(place, 1).flatten(2) for place in places]
    bases = [torch.linalg.eigh(matrix @ matrix.mT)[1] for matrix in unfolded]
    axes, new = "hij"[-len(bases) :], "opq"[-len(bases) :]
    turned = ",".join(f"g{axis}{other}" for axis, other in zip(axes, new, strict=True))
    return torch.einsum(f"gnc{axes},{turned}->g{new}nc", weight, *bases).flatten(1, len(bases))


def _squares(matrices: Tensor) -> Tensor:
    """Return the squared singular values of matrices (..., H, W)."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    products = matrices @ matrices.mT if wide else matrices.mT @ matrices
    if products.shape[-1] == 1:
        return products[..., 0]
    return torch.linalg.eigvalsh(products).clamp_min(0)
