"""The entries of a structure, read from JSON that anyone may have written.

Types and ranges are checked here, without a model and before anything is done; ``structure_fit`` compares an entry
with the module it changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from norton_plugin.blocks import CPD_BLOCKS
from norton_plugin.errors import ArtifactError
from norton_plugin.modules.output_selection import OutputSelection
from norton_plugin.surgery.structure_arguments import (
    LARGEST,
    block_arguments,
    damaged,
    is_whole,
    linear_arguments,
    shortened,
    spatial_arguments,
)

VERSION = 1
_MOST_AXES = 16
Attribute = int | float | list[int] | tuple[int, ...]


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
        filters, rank, kernel_size = found["out_channels"], found["rank"], found["kernel_size"]
        clusters = found.get("clusters")
        shapes: dict[str, tuple[int, ...]] = {
            "head": (clusters or filters, rank, found["in_channels"] // found["groups"])
        }
        if clusters is None or max(kernel_size) > 1:
            axes = zip(CPD_BLOCKS[len(kernel_size)].axes, kernel_size, strict=True)
            shapes |= {name: (clusters or filters, rank, length) for name, length in axes}
        if clusters is not None:
            shapes["mix"] = (filters, rank)
            shapes |= {"slot": (filters,)} if clusters > 1 else {}
        return {**shapes, "bias": (filters,)} if found["bias"] else shapes


@dataclass(frozen=True)
class SpatialEntry:
    """A module that a SpatialSVDBlock takes the place of.

    Attributes:
        names: All dotted names of the module.
        arguments: Of the block's constructor, pairs as tuples.
    """

    names: tuple[str, ...]
    arguments: dict[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the block's parameters."""
        found = self.arguments
        filters, rank, groups, (kh, kw) = (found[key] for key in ("out_channels", "rank", "groups", "kernel_size"))
        shapes: dict[str, tuple[int, ...]] = {
            "vertical": (groups * rank, found["in_channels"] // groups, kh),
            "horizontal": (filters, rank, kw),
        }
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
        selected: What stays of its output, None where all does.
    """

    names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, Attribute]
    selected: OutputSelection | None = None


Entry = BlockEntry | SpatialEntry | LinearEntry | ResizeEntry


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
        return BlockEntry(tuple(names), block_arguments(where, _dict(f"'block' of {where}", entry["block"])))
    if set(entry) == {"names", "spatial"}:
        return SpatialEntry(tuple(names), spatial_arguments(where, _dict(f"'spatial' of {where}", entry["spatial"])))
    if set(entry) == {"names", "linear"}:
        return LinearEntry(tuple(names), linear_arguments(where, _dict(f"'linear' of {where}", entry["linear"])))
    if set(entry) - {"selected"} == {"names", "resize", "attributes"}:
        shapes = _dict(f"'resize' of {where}", entry["resize"])
        attributes = _dict(f"'attributes' of {where}", entry["attributes"])
        return ResizeEntry(
            tuple(names),
            {name: _shape(f"the shape of {name!r} in {where}", shape) for name, shape in shapes.items()},
            {name: _attribute(f"the attribute {name!r} of {where}", value) for name, value in attributes.items()},
            _selection(f"'selected' of {where}", entry["selected"]) if "selected" in entry else None,
        )
    raise damaged(f"the entry of {where}", sorted(entry), "names with block, spatial, linear, or resize and attributes")


def _dict(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise damaged(what, value, "a table with names as keys")
    return dict(value)


def _shape(what: str, value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, list | tuple)
        or len(value) > _MOST_AXES
        or not all(is_whole(size) and 0 <= size <= LARGEST for size in value)
    ):
        raise damaged(what, value, "a list of sizes")
    return tuple(value)


def _selection(what: str, value: Any) -> OutputSelection:
    found = _dict(what, value)
    if set(found) != {"dim", "size", "kept"}:
        raise damaged(what, sorted(found), "dim, size and kept")
    dim, size, kept = found["dim"], found["size"], found["kept"]
    if not isinstance(kept, list | tuple) or not kept:
        raise damaged(f"'kept' of {what}", kept, "a list of positions")
    if not all(map(is_whole, (dim, size, *kept))) or not (0 <= dim < _MOST_AXES and 1 <= size <= LARGEST):
        raise damaged(what, value, "a dimension, a size and positions")
    ascending = all(a < b for a, b in pairwise(kept))
    if not ascending or kept[0] < 0 or kept[-1] >= size:
        raise damaged(f"'kept' of {what}", kept, f"ascending positions below {size}")
    return OutputSelection(dim, size, tuple(kept))


def _attribute(what: str, value: Any) -> Attribute:
    """JSON has no tuples: they are marked, and come back as such."""
    if is_whole(value) or (type(value) is float and math.isfinite(value)):
        return value
    marked = isinstance(value, Mapping)
    numbers = value.get("tuple") if isinstance(value, Mapping) and set(value) == {"tuple"} else value
    if not isinstance(numbers, list) or not all(map(is_whole, numbers)):
        raise damaged(what, value, "a number, or a list or a tuple of integers")
    return tuple(numbers) if marked else list(numbers)
