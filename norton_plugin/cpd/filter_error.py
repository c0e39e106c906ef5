"""The error of every filter that factors rebuild, whatever kind of factors they are."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from norton_plugin.cpd.scaling import unit_scale
from norton_plugin.errors import DecompositionError


def filter_nmse(weight: Tensor, expected: Sequence[int], rebuilt: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``||W[n] - W^[n]||^2 / ||W[n]||^2`` of every filter.

    Args:
        weight: The weight approximated, (N, C, Kh, Kw).
        expected: The shape that the factors stand for.
        rebuilt: Returns the filters in float64, (N, ...), divided by the powers of two whose exponents it is given,
            int64 (N, 1).

    Returns:
        Shape (N,), float64, >= 0. A zero filter rebuilt as zero has error 0; otherwise infinity.

    Raises:
        DecompositionError: The weight has another shape than the factors stand for.
    """
    if tuple(weight.shape) != tuple(expected):
        raise DecompositionError(
            f"The weight has shape {tuple(weight.shape)}, these factors stand for {tuple(expected)}; "
            "pass the weight they were computed from."
        )
    # At a scale where no square overflows or vanishes; powers of two change no digit of the quotient.
    reference, exponent = unit_scale(weight.detach().flatten(1), dims=1)
    difference = rebuilt(exponent).flatten(1) - reference
    error, energy = difference.square().sum(1), reference.square().sum(1)
    return torch.where(error == 0, torch.zeros_like(error), error / energy)
