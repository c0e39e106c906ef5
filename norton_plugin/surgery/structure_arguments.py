"""The arguments of blocks, read from JSON that anyone may have written: types and ranges, without a model."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from norton_plugin.blocks import AUTO, FORMS, SpatialSVDBlock
from norton_plugin.blocks.padding import PADDING_MODES
from norton_plugin.errors import ArtifactError

# No width, kernel or number of channels of any network comes near; torch itself counts with 64 bits.
LARGEST = 2**31 - 1
_MOST_AXES = 3  # of a kernel
_PADDING_RULES = ("same", "valid", "dynamic_same")


def damaged(what: str, found: Any, expected: str) -> ArtifactError:
    """Describe a value that no structure holds."""
    return ArtifactError(
        f"the structure cannot be applied: {what} is {shortened(found)}, expected {expected}; it was edited or damaged"
    )


def shortened(value: Any) -> str:
    """Show a value of any size and kind in a few words."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits has no text
        return f"a {type(value).__name__} too large to show"


def is_whole(value: Any) -> TypeGuard[int]:
    """Tell whether a value is an integer and no bool."""
    return type(value) is int


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in choices


def _number(value: Any) -> bool:
    return is_whole(value) and 1 <= value <= LARGEST


def _per_axis_from(least: int) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        several = isinstance(value, list | tuple) and 1 <= len(value) <= _MOST_AXES
        return several and all(is_whole(number) and least <= number <= LARGEST for number in value)

    return fits


def _padding(value: Any) -> bool:
    return _one_of(_PADDING_RULES)(value) or _per_axis_from(0)(value)


# Every argument of a block that JSON may give: what it must be, in code and in words.
_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("in_channels", "out_channels", "rank", "groups"), (_number, "a positive integer")),
    **dict.fromkeys(("kernel_size", "stride", "dilation"), (_per_axis_from(1), "one to three positive integers")),
    "padding": (_padding, f"one to three numbers of pixels or one of {_PADDING_RULES}"),
    "bias": (lambda value: isinstance(value, bool), "true or false"),
    "padding_mode": (_one_of(PADDING_MODES), f"one of {PADDING_MODES}"),
    "form": (_one_of((*FORMS, AUTO)), f"one of {(*FORMS, AUTO)}"),
    "training_form": (_one_of(FORMS), f"one of {FORMS}"),
}


# Those that only a block whose filters share components has.
_SHARED_ARGUMENTS = {**_ARGUMENTS, **dict.fromkeys(("clusters", "cluster_size"), (_number, "a positive integer"))}
_SPATIAL_ARGUMENTS = {
    **_ARGUMENTS,
    "form": (_one_of((*SpatialSVDBlock.forms, AUTO)), f"one of {(*SpatialSVDBlock.forms, AUTO)}"),
    "training_form": (_one_of(SpatialSVDBlock.forms), f"one of {SpatialSVDBlock.forms}"),
}
_LINEAR_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("in_features", "out_features", "components"), (_number, "a positive integer")),
    "bias": (lambda value: isinstance(value, bool), "true or false"),
}


def _checked(
    what: str, plain: dict[str, Any], arguments: Mapping[str, tuple[Callable[[Any], bool], str]]
) -> dict[str, Any]:
    if set(plain) != set(arguments):
        raise damaged(what, sorted(plain), f"the arguments {', '.join(arguments)}")
    for name, (fits, expected) in arguments.items():
        if not fits(plain[name]):
            raise damaged(f"{name} of {what}", plain[name], expected)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}


def linear_arguments(where: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a CPDLinear.

    Args:
        where: Name of the module, for messages.
        plain: As JSON holds them.

    Raises:
        ArtifactError: Others, or values that no layer has.
    """
    return _checked(f"'linear' of {where}", plain, _LINEAR_ARGUMENTS)


def spatial_arguments(where: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a SpatialSVDBlock, pairs as tuples; see ``linear_arguments``."""
    found = _checked(f"'spatial' of {where}", plain, _SPATIAL_ARGUMENTS)
    _check_axes(where, found, axes=2)
    _check_groups(where, found)
    return found


def block_arguments(where: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a CPDBlock, pairs as tuples; see ``linear_arguments``."""
    arguments = _SHARED_ARGUMENTS if "clusters" in plain else _ARGUMENTS
    found = _checked(f"'block' of {where}", plain, arguments)
    _check_axes(where, found, axes=len(found["kernel_size"]))
    _check_groups(where, found)
    filters, groups = found["out_channels"], found["groups"]
    clusters, size = found.get("clusters", groups), found.get("cluster_size", filters)
    if clusters % groups or not clusters <= filters <= clusters * size or size > filters:
        raise damaged(
            f"clusters and cluster_size of the block {where}",
            [clusters, size],
            f"a multiple of {groups} groups, and places for {filters} filters",
        )
    return found


def _check_axes(where: str, found: Mapping[str, Any], *, axes: int) -> None:
    for name in ("kernel_size", "stride", "dilation", "padding"):
        if not isinstance(found[name], str) and len(found[name]) != axes:
            raise damaged(f"{name} of the block {where}", found[name], f"a number for each of {axes} axes")


def _check_groups(where: str, found: Mapping[str, Any]) -> None:
    channels, filters, groups = found["in_channels"], found["out_channels"], found["groups"]
    if channels % groups or filters % groups:
        raise damaged(f"groups of the block {where}", groups, f"a divisor of {channels} and {filters} channels")
