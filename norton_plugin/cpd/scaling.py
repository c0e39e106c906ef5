"""Scaling by powers of two, which rounds nothing: squares of very large and very small weights stay in range."""

import torch
from torch import Tensor


def unit_scale(tensor: Tensor, *, dims: int) -> tuple[Tensor, Tensor]:
    """Scale slices of a tensor so that the largest magnitude in each lies in [0.5, 1).

    Args:
        tensor: Any floating dtype; slices are what its last ``dims`` axes hold.
        dims: How many axes a slice has, at least 1.

    Returns:
        The scaled tensor in float64, attached to the graph, and the int64 exponent of each slice, with axes of length
        one in the place of the slices': ``tensor == scaled * 2 ** exponent`` exactly. A zero slice has the exponent 0.
    """
    double = tensor.double()
    largest = double.detach().abs().amax(tuple(range(-dims, 0)), keepdim=True)
    exponent = torch.frexp(largest).exponent.long()
    return times_power_of_two(double, -exponent), exponent


def times_power_of_two(tensor: Tensor, exponent: Tensor) -> Tensor:
    """Multiply by ``2 ** exponent``, exactly where the result is a normal number.

    ``torch.ldexp`` forms the power in single precision, where 2 ** 128 is infinite already.

    Args:
        tensor: Float64.
        exponent: Int64, from -2044 to 2046, broadcasts to the tensor.

    Returns:
        Float64, the shape of the tensor.
    """
    # In two halves: 2 ** exponent alone may be out of range where the product is not.
    half = torch.div(exponent, 2, rounding_mode="floor")
    return tensor * _power_of_two(half) * _power_of_two(exponent - half)


def root_of_power(exponent: Tensor, *, degree: int) -> Tensor:
    """Form ``2 ** (exponent / degree)``.

    Args:
        exponent: Int64, from -1000 * degree to 1000 * degree.
        degree: At least 1.

    Returns:
        Float64, the shape of the exponents.
    """
    whole = torch.div(exponent, degree, rounding_mode="floor")
    roots = torch.tensor([2.0 ** (rest / degree) for rest in range(degree)], dtype=torch.float64)
    return times_power_of_two(roots.to(exponent.device)[exponent - degree * whole], whole)


def _power_of_two(exponent: Tensor) -> Tensor:
    """``2 ** exponent`` by its bits, for exponents from -1022 to 1023."""
    return ((exponent.clamp(-1022, 1023) + 1023) << 52).view(torch.float64)
