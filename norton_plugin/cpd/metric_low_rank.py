"""Components without spatial factors: the truncated SVD in the metric of the outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from norton_plugin.cpd.metric import OutputMetric, cholesky


def truncated_under(metric: OutputMetric, components: int) -> tuple[Tensor, Tensor]:
    """Return the best weight of a rank for one set of inputs.

    With the Cholesky factor ``S = L L'`` and the SVD ``P L^-T = U s V'``, the optimum is ``U_M (U_M' P S^-1)``: the
    outputs of the best dense weight, projected on the M directions that carry most of their energy.

    Args:
        metric: Of one channel group; ``second`` positive definite.
        components: M; from min(N, D) on the result is the best dense weight.

    Returns:
        ``mix`` (N, M) and ``head`` (M, D); directions beyond min(N, D) are zero.
    """
    factor = cholesky(metric.second[0])
    whitened = torch.linalg.solve_triangular(factor, metric.cross.mT, upper=False).mT
    left, _, _ = torch.linalg.svd(whitened, full_matrices=False)
    left = left[:, :components]
    head = torch.cholesky_solve((left.mT @ metric.cross).mT, factor).mT
    missing = components - left.shape[1]
    if missing > 0:
        left, head = torch.nn.functional.pad(left, (0, missing)), torch.nn.functional.pad(head, (0, 0, 0, missing))
    return left, head
