"""What a CPDBlock may be built from: every argument is checked before anything is allocated."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from norton_plugin.errors import SurgeryError

# Far beyond any layer of a CNN, and 1 GiB in single precision.
MAX_NUMBERS = 2**28
# Of kernels, strides, dilations and paddings.
MAX_PIXELS = 2**12
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def whole_number(value: Any, name: str, *, low: int = 1, high: int = MAX_NUMBERS) -> int:
    """Check a number that counts something.

    Args:
        value: As the caller gave it.
        name: Of the argument, for the message.
        low: Smallest number that makes sense.
        high: Largest one.

    Returns:
        The number as an ``int``.

    Raises:
        SurgeryError: Not a whole number (``True`` is none), or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise SurgeryError(f"{name} {reprlib.repr(value)} is not a whole number from {low} to {high}")
    return int(value)


def per_axis(value: Any, name: str, *, axes: int = 2, low: int = 1) -> tuple[int, ...]:
    """Check pixels that are given once, or for every axis of the kernel.

    Args:
        value: As the caller gave it.
        name: Of the argument, for the message.
        axes: How many the kernel has.
        low: Smallest number of pixels that makes sense.

    Returns:
        One number for each axis: (vertical, horizontal) for two.

    Raises:
        SurgeryError: Neither one whole number nor one for each axis, or out of range.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    given = list(value[: axes + 1]) if several else [value] * axes
    try:
        found = tuple(whole_number(side, name, low=low, high=MAX_PIXELS) for side in given)
        if len(found) != axes:
            raise SurgeryError(f"{name} has {len(found)} numbers, the kernel {axes} axes")
    except SurgeryError as error:
        kind = "positive" if low else "non-negative"
        count = "one" if axes == 1 else f"one or {('two', 'three')[axes - 2]}"
        raise SurgeryError(
            f"{name} {reprlib.repr(value)} is not {count} {kind} whole numbers of pixels, at most {MAX_PIXELS}"
        ) from error
    return found


def choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """Check a word out of a closed list.

    Raises:
        SurgeryError: Another one; the list is named.
    """
    if not isinstance(value, str) or value not in choices:
        raise SurgeryError(f"{name} {reprlib.repr(value)} is unknown; expected one of {tuple(choices)}")
    return value


def check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    """Refuse groups that do not divide the channels on both sides.

    Raises:
        SurgeryError: They do not.
    """
    if in_channels % groups or out_channels % groups:
        raise SurgeryError(f"groups {groups} must divide in_channels {in_channels} and out_channels {out_channels}")


def check_clusters(clusters: Any, size: Any, *, filters: int, groups: int) -> tuple[int, int]:
    """Check how many clusters the filters of a block fall into, and how many places each has.

    Args:
        clusters: K, or None for filters that share nothing.
        size: S, or None for N / K, rounded up.
        filters: N.
        groups: Groups of the convolution.

    Returns:
        K and S; N and 1 without clusters.

    Raises:
        SurgeryError: Not as many filters as clusters, clusters that cross the borders of groups, or too few places.
    """
    if clusters is None:
        if size is not None:
            raise SurgeryError(f"cluster_size {reprlib.repr(size)} is given without clusters; give both or none")
        return filters, 1
    count = whole_number(clusters, "clusters", high=filters)
    if count % groups:
        raise SurgeryError(f"clusters {count} must be a multiple of groups {groups}: no cluster lies in two groups")
    least = -(-filters // count)
    return count, least if size is None else whole_number(size, "cluster_size", low=least, high=filters)


def check_size(*, filters: int, channels: int, kernel_size: tuple[int, ...], rank: int, clusters: int) -> None:
    """Refuse a block that would take gigabytes, as factors or as the dense weight.

    Args:
        filters: N.
        channels: C, channels that one filter sees.
        kernel_size: (Kh, Kw), or the lengths of another number of axes.
        rank: R.
        clusters: K.

    Raises:
        SurgeryError: More than ``MAX_NUMBERS`` numbers.
    """
    mixed = 0 if clusters == filters else filters
    factors = rank * (clusters * (channels + sum(kernel_size)) + mixed)
    numbers = max(factors, filters * channels * math.prod(kernel_size))
    if numbers > MAX_NUMBERS:
        raise SurgeryError(
            f"a block of {filters} filters of shape {(channels, *kernel_size)} and rank {rank} takes {numbers} "
            f"numbers; at most {MAX_NUMBERS} are allowed"
        )


def check_placement(device: Any, dtype: Any) -> None:
    """Refuse a dtype that factors cannot have, and a device that is not there.

    Raises:
        SurgeryError: Say which, and why.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in DTYPES):
        names = ", ".join(str(known) for known in DTYPES)
        raise SurgeryError(f"dtype {reprlib.repr(dtype)} is not one of {names}")
    try:
        torch.empty(0, device=device, dtype=dtype)
    except Exception as error:  # each backend has errors of its own
        reason = str(error).partition("\n")[0][:160]
        raise SurgeryError(
            f"device {reprlib.repr(device)} cannot be used ({type(error).__name__}: {reason}); expected one of torch's"
        ) from error


def check_flag(value: Any, name: str) -> bool:
    """Refuse what is neither True nor False.

    Raises:
        SurgeryError: Anything else.
    """
    if not isinstance(value, bool):
        raise SurgeryError(f"{name} {reprlib.repr(value)} is neither True nor False")
    return value
