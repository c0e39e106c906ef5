"""The structure of a compressed model: JSON that says how it differs from the architecture it came from.

An entry names a module (all its dotted names) and one of
    ``block``   the arguments of the CPDBlock that took its place
    ``spatial`` the arguments of the SpatialSVDBlock that took its place
    ``linear``  the arguments of the CPDLinear that took its place
    ``resize``  new shapes of its own parameters and buffers
and in both cases the plain attributes that changed with them (``out_channels``, ``num_features``, ``num_heads`` ...);
``selected`` beside ``resize`` says which channels stay of what a module without weights returns.
Nothing in it is executable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPD_BLOCKS, ConvBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.errors import ArtifactError
from norton_plugin.modules.feature_info import LISTED_WIDTHS, list_widths_
from norton_plugin.modules.output_selection import select_output_
from norton_plugin.modules.swap import renew_references_, swap_, take_over_flags_
from norton_plugin.surgery.geometry import Geometry, geometry, kept_out, kind_of_block, own_tensors, thaw
from norton_plugin.surgery.structure_arguments import damaged, shortened
from norton_plugin.surgery.structure_entries import (
    VERSION,
    BlockEntry,
    Entry,
    LinearEntry,
    ResizeEntry,
    SpatialEntry,
    check_version,
    read_entries,
)
from norton_plugin.surgery.structure_fit import check_block, check_linear, check_resize, may_become

Structure = dict[str, Any]
# Attributes that decide what a layer computes but no shape of its tensors: two networks may differ in these alone.
_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode", "eps", "num_groups")


def diff(dense: Geometry, compressed: Geometry) -> Structure:
    """Return the structure that leads from one geometry to the other.

    Args:
        dense: Geometry of the original.
        compressed: Geometry after surgery; its modules bear names of the original.

    Raises:
        ArtifactError: A module has no counterpart in the original, or none of its kind.
    """
    entries = []
    for name, entry in compressed.items():
        old = dense.get(name)
        if old is None:
            raise ArtifactError(f"the compressed model has a module {name!r} which the original does not have")
        if entry == old:
            continue
        kind = kind_of_block(entry)
        if kind is not None:
            entries.append({"names": entry["names"], kind: entry[kind]})
            continue
        if kind_of_block(old) is not None:
            raise ArtifactError(f"{name!r} is decomposed in the original and not in the compressed model")
        # A buffer that was cut belongs to the state dict from then on: only there it is known which values stayed.
        shapes = {**old["kept_out"], **old["shapes"]}
        changes = {
            "shapes": _changes(entry["shapes"], shapes),
            "attributes": _renewed(entry["attributes"], old["attributes"]),
        }
        # Tensors and attributes that only one of the two has were made by running the model, not by surgery.
        selected = {"selected": entry["selected"]} if entry.get("selected") != old.get("selected") else {}
        if any(changes.values()) or selected:
            resized = {"resize": changes["shapes"], "attributes": changes["attributes"]}
            entries.append({"names": entry["names"], **resized, **selected})
    return {"version": VERSION, "source": _fingerprint(dense), "modules": entries}


def _changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in new.items() if key in old and old[key] != value}


def _renewed(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that count fewer channels than before; what else changed was left behind by a run."""
    changes = _changes(new, old)
    return {k: v for k, v in changes.items() if not k.startswith("_") and may_become(k, thaw(old[k]), thaw(v))}


def _fingerprint(dense: Geometry) -> dict[str, Any]:
    """Return shapes of all tensors of the original and settings of its layers: they identify the architecture."""
    facts: dict[str, Any] = {}
    for name, entry in dense.items():
        prefix = f"{name}." if name else ""
        kind = kind_of_block(entry)
        if kind is not None:
            facts[f"{prefix}<block>"] = {k: v for k, v in entry[kind].items() if k not in ("form", "training_form")}
            continue
        for tensor, shape in entry["shapes"].items():
            facts[prefix + tensor] = shape
        for setting in _SETTINGS:
            if setting in entry["attributes"]:
                facts[prefix + setting] = entry["attributes"][setting]
    return facts


def structure_hash(structure: Structure) -> str:
    """Return the SHA-256 of the canonical JSON.

    Raises:
        ArtifactError: It is nothing that JSON can hold.
    """
    try:
        canonical = json.dumps(structure, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the structure is no JSON ({type(error).__name__}); it was edited or damaged") from error
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_source(model: nn.Module, structure: Structure) -> None:
    """Check that a structure was made from this architecture.

    Raises:
        ArtifactError: An unknown version, or a model that differs; the first difference is named.
    """
    check_version(structure)
    expected, found = structure.get("source"), _fingerprint(geometry(model))
    if not isinstance(expected, Mapping):
        raise ArtifactError("the structure does not say which model it was made from; it is damaged")
    for name in [*found, *(name for name in expected if name not in found)]:
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                f"the model is not the one that was compressed: {name} is {_shown(found, name)}, the structure was "
                f"made from {_shown(expected, name)}; build the original dense model with the same constructor and "
                "arguments"
            )


def _shown(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return "absent"
    value = facts[name]
    marked = isinstance(value, Mapping) and set(value) == {"tuple"} and isinstance(value["tuple"], list)
    return shortened(thaw(value) if marked else value)


def apply_structure_(model: nn.Module, structure: Structure) -> None:
    """Rebuild a compressed model from the dense one, in place; weights are not filled in.

    Every entry is checked against the model before anything is made or changed. New tensors have the dtype, device
    and ``requires_grad`` of those they replace.

    Args:
        model: Freshly built original.
        structure: As ``diff`` made it, or JSON from anyone that looks like it.

    Raises:
        ArtifactError: Version, model or an entry do not fit; nothing is changed then.
    """
    check_source(model, structure)
    entries = read_entries(structure)
    places = list(zip(entries, _find(model, entries), strict=True))
    for entry, module in places:
        if isinstance(entry, BlockEntry | SpatialEntry):
            check_block(entry, module)
        elif isinstance(entry, LinearEntry):
            check_linear(entry, module)
        else:
            check_resize(entry, module, {**kept_out(module), **own_tensors(module)})
    try:
        blocks = {m: _build_block(entry, m) for entry, m in places if not isinstance(entry, ResizeEntry)}
        resized = [(m, _resized(m, e.shapes), e) for e, m in places if isinstance(e, ResizeEntry)]
        swap_(model, dict(blocks))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, StopIteration, MemoryError) as error:
        raise ArtifactError(
            f"the structure cannot be applied ({type(error).__name__}: {error}); it was edited or damaged"
        ) from error
    for module, tensors, entry in resized:
        for name, tensor in tensors.items():
            (module._parameters if name in module._parameters else module._buffers)[name] = tensor  # type: ignore[assignment]
            module._non_persistent_buffers_set.discard(name)
        renew_references_(module)
        if isinstance(widths := entry.attributes.get(LISTED_WIDTHS), list):
            list_widths_(module, widths)
        vars(module).update({name: value for name, value in entry.attributes.items() if name != LISTED_WIDTHS})
        if entry.selected is not None:
            select_output_(module, entry.selected)


def _find(model: nn.Module, entries: Sequence[Entry]) -> list[nn.Module]:
    """Find the module of each entry: all its names are of that one, and no other entry is about it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[nn.Module, str] = {}
    for entry in entries:
        absent = [name for name in entry.names if name not in modules]
        if absent:
            raise damaged("a name", absent[0], "one of the model's modules")
        module, *others = {modules[name] for name in entry.names}
        if others:
            raise damaged("a list of names", list(entry.names), "names of one module")
        if module in found:
            raise damaged(f"{entry.names[0]!r}", f"another name of {found[module]!r}", "one entry per module")
        found[module] = entry.names[0]
    return list(found)


def _build_block(entry: BlockEntry | SpatialEntry | LinearEntry, old: nn.Module) -> nn.Module:
    reference = next(old.parameters())
    kind: type[ConvBlock | CPDLinear] = CPDLinear
    if isinstance(entry, BlockEntry):
        kind = CPD_BLOCKS[len(entry.arguments["kernel_size"])]
    elif isinstance(entry, SpatialEntry):
        kind = SpatialSVDBlock
    block = kind(**entry.arguments, device=reference.device, dtype=reference.dtype)
    take_over_flags_(block, old)
    return block


def _resized(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return new tensors of these shapes, of the kind that the module has now."""
    own = {**kept_out(module), **own_tensors(module)}
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        old = own[name]
        new = torch.zeros(shape, dtype=old.dtype, device=old.device)
        tensors[name] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    return tensors
