"""The entries of a structure, read from JSON that anyone may have written.

Types and ranges are checked here, without a model and before anything is done; ``structure_fit`` compares an entry
with the module it changes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from norton_plugin.blocks.forms import AUTO, FORMS
from norton_plugin.blocks.padding import PADDING_MODES
from norton_plugin.errors import ArtifactError

VERSION = 1
# No width, kernel or number of channels of any network comes near; torch itself counts with 64 bits.
LARGEST = 2**31 - 1
_MOST_AXES = 16
_PADDING_RULES = ("same", "valid", "dynamic_same")
Attribute = int | list[int] | tuple[int, ...]


@dataclass(frozen=True)
class BlockEntry:
    """A module that a CPDBlock takes the place of.

    Attributes:
        names: All dotted names of the module.
        arguments: Of the block's constructor, pairs as tuples.
    """

    names: tuple[str, ...]
    arguments: dict[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the block's parameters and buffers."""
        found = self.arguments
        filters, rank, (kh, kw) = found["out_channels"], found["rank"], found["kernel_size"]
        clusters = found.get("clusters")
        shapes: dict[str, tuple[int, ...]] = {
            "head": (clusters or filters, rank, found["in_channels"] // found["groups"])
        }
        if clusters is None or (kh, kw) != (1, 1):
            shapes |= {"vertical": (clusters or filters, rank, kh), "horizontal": (clusters or filters, rank, kw)}
        if clusters is not None:
            shapes["mix"] = (filters, rank)
            shapes |= {"slot": (filters,)} if clusters > 1 else {}
        return {**shapes, "bias": (filters,)} if found["bias"] else shapes


@dataclass(frozen=True)
class LinearEntry:
    """A Linear layer that a CPDLinear takes the place of.

    Attributes:
        names: All dotted names of the module.
        arguments: Of the layer's constructor.
    """

    names: tuple[str, ...]
    arguments: dict[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the layer's parameters."""
        found = self.arguments
        features, components = found["out_features"], found["components"]
        shapes: dict[str, tuple[int, ...]] = {
            "head": (components, found["in_features"]),
            "mix": (features, components),
        }
        return {**shapes, "bias": (features,)} if found["bias"] else shapes


@dataclass(frozen=True)
class ResizeEntry:
    """A module whose own tensors and attributes change.

    Attributes:
        names: All dotted names of the module.
        shapes: New shapes of its parameters and buffers.
        attributes: New values of plain attributes.
    """

    names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, Attribute]


Entry = BlockEntry | LinearEntry | ResizeEntry


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


def check_version(structure: Mapping[str, Any]) -> None:
    """Check that this package can read a structure.

    Raises:
        ArtifactError: It is of another version.
    """
    version = structure.get("version")
    if type(version) is not int or version != VERSION:
        raise ArtifactError(
            f"the structure has version {shortened(version)}, this package reads version {VERSION}; "
            "install the norton-plugin release that wrote it"
        )


def read_entries(structure: Mapping[str, Any]) -> list[Entry]:
    """Read all entries of a structure.

    Args:
        structure: As ``structure.diff`` made it, or JSON that looks like it.

    Returns:
        The entries, of which no two bear the same name.

    Raises:
        ArtifactError: A key, a type or a number that no structure holds.
    """
    check_version(structure)
    found = structure.get("modules")
    if not isinstance(found, list | tuple):
        raise damaged("'modules'", found, "a list")
    entries: list[Entry] = []
    seen: set[str] = set()
    for position, plain in enumerate(found):
        entry = _entry(f"modules[{position}]", plain)
        twice = seen.intersection(entry.names)
        if twice:
            raise damaged(f"the name {min(twice)!r} in modules[{position}]", "used twice", "one entry per module")
        seen.update(entry.names)
        entries.append(entry)
    return entries


def tensor_shapes(entries: list[Entry]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that entries give to tensors of the state dict, by name; aliases of a module each have one."""
    return {
        f"{name}.{tensor}" if name else tensor: shape
        for entry in entries
        for name in entry.names
        for tensor, shape in entry.shapes.items()
    }


def _entry(where: str, plain: Any) -> Entry:
    entry = _dict(where, plain)
    names = entry.get("names")
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise damaged(f"'names' of {where}", names, "a list of dotted names")
    where = f"{names[0]!r}" if names[0] else "the model"
    if set(entry) == {"names", "block"}:
        return BlockEntry(tuple(names), _block_arguments(where, _dict(f"'block' of {where}", entry["block"])))
    if set(entry) == {"names", "linear"}:
        plain = _dict(f"'linear' of {where}", entry["linear"])
        return LinearEntry(tuple(names), _checked_arguments(f"'linear' of {where}", plain, _LINEAR_ARGUMENTS))
    if set(entry) == {"names", "resize", "attributes"}:
        shapes = _dict(f"'resize' of {where}", entry["resize"])
        attributes = _dict(f"'attributes' of {where}", entry["attributes"])
        return ResizeEntry(
            tuple(names),
            {name: _shape(f"the shape of {name!r} in {where}", shape) for name, shape in shapes.items()},
            {name: _attribute(f"the attribute {name!r} of {where}", value) for name, value in attributes.items()},
        )
    raise damaged(f"the entry of {where}", sorted(entry), "names with block, linear, or resize and attributes")


def _dict(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise damaged(what, value, "a table with names as keys")
    return dict(value)


def is_whole(value: Any) -> TypeGuard[int]:
    """Tell whether a value is an integer and no bool."""
    return type(value) is int


def _shape(what: str, value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, list | tuple)
        or len(value) > _MOST_AXES
        or not all(is_whole(size) and 0 <= size <= LARGEST for size in value)
    ):
        raise damaged(what, value, "a list of sizes")
    return tuple(value)


def _attribute(what: str, value: Any) -> Attribute:
    """JSON has no tuples: they are marked, and come back as such."""
    if is_whole(value):
        return value
    marked = isinstance(value, Mapping)
    numbers = value.get("tuple") if isinstance(value, Mapping) and set(value) == {"tuple"} else value
    if not isinstance(numbers, list) or not all(map(is_whole, numbers)):
        raise damaged(what, value, "an integer, or a list or a tuple of integers")
    return tuple(numbers) if marked else list(numbers)


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in choices


def _number(value: Any) -> bool:
    return is_whole(value) and 1 <= value <= LARGEST


def _pair_from(least: int) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        pair = isinstance(value, list | tuple) and len(value) == 2
        return pair and all(is_whole(number) and least <= number <= LARGEST for number in value)

    return fits


def _padding(value: Any) -> bool:
    return _one_of(_PADDING_RULES)(value) or _pair_from(0)(value)


# Every argument of a block that JSON may give: what it must be, in code and in words.
_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("in_channels", "out_channels", "rank", "groups"), (_number, "a positive integer")),
    **dict.fromkeys(("kernel_size", "stride", "dilation"), (_pair_from(1), "two positive integers")),
    "padding": (_padding, f"two numbers of pixels or one of {_PADDING_RULES}"),
    "bias": (lambda value: isinstance(value, bool), "true or false"),
    "padding_mode": (_one_of(PADDING_MODES), f"one of {PADDING_MODES}"),
    "form": (_one_of((*FORMS, AUTO)), f"one of {(*FORMS, AUTO)}"),
    "training_form": (_one_of(FORMS), f"one of {FORMS}"),
}


# Those that only a block whose filters share components has.
_SHARED_ARGUMENTS = {**_ARGUMENTS, **dict.fromkeys(("clusters", "cluster_size"), (_number, "a positive integer"))}
_LINEAR_ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("in_features", "out_features", "components"), (_number, "a positive integer")),
    "bias": (lambda value: isinstance(value, bool), "true or false"),
}


def _checked_arguments(
    what: str, plain: dict[str, Any], arguments: Mapping[str, tuple[Callable[[Any], bool], str]]
) -> dict[str, Any]:
    if set(plain) != set(arguments):
        raise damaged(what, sorted(plain), f"the arguments {', '.join(arguments)}")
    for name, (fits, expected) in arguments.items():
        if not fits(plain[name]):
            raise damaged(f"{name} of {what}", plain[name], expected)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}


def _block_arguments(where: str, plain: dict[str, Any]) -> dict[str, Any]:
    arguments = _SHARED_ARGUMENTS if "clusters" in plain else _ARGUMENTS
    found = _checked_arguments(f"'block' of {where}", plain, arguments)
    channels, filters, groups = found["in_channels"], found["out_channels"], found["groups"]
    if channels % groups or filters % groups:
        raise damaged(f"groups of the block {where}", groups, f"a divisor of {channels} and {filters} channels")
    clusters, size = found.get("clusters", groups), found.get("cluster_size", filters)
    if clusters % groups or not clusters <= filters <= clusters * size or size > filters:
        raise damaged(
            f"clusters and cluster_size of the block {where}",
            [clusters, size],
            f"a multiple of {groups} groups, and places for {filters} filters",
        )
    return found
