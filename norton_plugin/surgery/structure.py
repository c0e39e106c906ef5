"""The structure of a compressed model: JSON that says how it differs from the architecture it came from.

An entry names a module (all its dotted names) and one of
    ``block``   the arguments of the CPDBlock that took its place
    ``resize``  new shapes of its own parameters and buffers
and in both cases the plain attributes that changed with them (``out_channels``, ``num_features``, ``num_heads`` ...).
Nothing in it is executable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.errors import ArtifactError
from norton_plugin.surgery.swap import names_by_identity, swap_

VERSION = 1
Geometry = dict[str, dict[str, Any]]
Structure = dict[str, Any]
_PLAIN = (bool, int, float, str, type(None))
_IGNORED = {"training", "_is_full_backward_hook", "_version", "is_init", "_is_init"}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return isinstance(value, _PLAIN)


def _freeze(value: Any) -> Any:
    """JSON has no tuples: they are marked so that they come back as such."""
    if isinstance(value, tuple):
        return {"tuple": [_freeze(v) for v in value]}
    return [_freeze(v) for v in value] if isinstance(value, list) else value


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(_thaw(v) for v in value["tuple"])
    return [_thaw(v) for v in value] if isinstance(value, list) else value


def _block_arguments(block: CPDBlock) -> dict[str, Any]:
    return {
        "in_channels": block.in_channels,
        "out_channels": block.out_channels,
        "kernel_size": list(block.kernel_size),
        "rank": block.rank,
        "stride": list(block.stride),
        "padding": list(block.padding) if isinstance(block.padding, tuple) else block.padding,
        "dilation": list(block.dilation),
        "groups": block.groups,
        "bias": block.bias is not None,
        "padding_mode": block.padding_mode,
        "form": block.form,
        "training_form": block.training_form,
    }


def geometry(model: nn.Module) -> Geometry:
    """Shapes and plain attributes of every module, by its first dotted name.

    Args:
        model: Any model; a CPDBlock is described by its arguments.
    """
    described: Geometry = {}
    for module, names in names_by_identity(model).items():
        entry: dict[str, Any] = {"names": list(names)}
        if isinstance(module, CPDBlock):
            entry["block"] = _block_arguments(module)
        else:
            shapes = {n: list(t.shape) for n, t in _own_tensors(module).items()}
            plain = {k: v for k, v in vars(module).items() if _is_plain(v) and k not in _IGNORED}
            entry |= {"shapes": shapes, "attributes": {k: _freeze(v) for k, v in plain.items()}}
        described[names[0]] = entry
    return described


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def diff(dense: Geometry, compressed: Geometry) -> Structure:
    """The structure that leads from one geometry to the other.

    Args:
        dense: Geometry of the original.
        compressed: Geometry after surgery; its modules bear names of the original.
    """
    entries = []
    for name, entry in compressed.items():
        old = dense.get(name)
        if old is None or entry == old:
            # Names the original does not have lie inside replaced modules.
            continue
        if "block" in entry:
            entries.append({"names": entry["names"], "block": entry["block"]})
            continue
        shapes = {k: v for k, v in entry["shapes"].items() if old.get("shapes", {}).get(k) != v}
        attributes = {k: v for k, v in entry["attributes"].items() if old.get("attributes", {}).get(k, _MISSING) != v}
        if shapes or attributes:
            entries.append({"names": entry["names"], "resize": shapes, "attributes": attributes})
    return {"version": VERSION, "source": _fingerprint(dense), "modules": entries}


_MISSING = object()


def _fingerprint(dense: Geometry) -> dict[str, list[int]]:
    """Names and shapes of all tensors of the original: what a foreign model is told by."""
    shapes: dict[str, list[int]] = {}
    for name, entry in dense.items():
        for tensor, shape in entry.get("shapes", {}).items():
            shapes[f"{name}.{tensor}" if name else tensor] = shape
        if "block" in entry:
            shapes[f"{name}.<block>"] = [entry["block"][k] for k in ("out_channels", "in_channels", "rank")]
    return shapes


def structure_hash(structure: Structure) -> str:
    """SHA-256 of the canonical JSON."""
    canonical = json.dumps(structure, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def check_source(model: nn.Module, structure: Structure) -> None:
    """Checks that a structure was made from this architecture.

    Raises:
        ArtifactError: An unknown version, or a model that differs; the first difference is named.
    """
    version = structure.get("version")
    if version != VERSION:
        raise ArtifactError(
            f"the structure has version {version!r}, this package reads version {VERSION}; "
            "install the norton-plugin release that wrote it"
        )
    expected, found = structure["source"], _fingerprint(geometry(model))
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                f"the model is not the one that was compressed: {name} has shape "
                f"{found.get(name, '(absent)')}, the structure was made from {expected.get(name, '(absent)')}; build "
                " the original dense model with the same constructor and arguments"
            )


def apply_structure_(model: nn.Module, structure: Structure) -> None:
    """Rebuilds a compressed model from the dense one, in place; weights are not filled in.

    New tensors have the dtype, device and ``requires_grad`` of those they replace.

    Args:
        model: Freshly built original.
        structure: As ``diff`` made it.

    Raises:
        ArtifactError: Version, model or an entry do not fit; nothing is changed then.
    """
    check_source(model, structure)
    modules = dict(model.named_modules(remove_duplicate=False))
    replacements: dict[nn.Module, nn.Module] = {}
    for entry in structure["modules"]:
        missing = [name for name in entry["names"] if name not in modules]
        if missing:
            raise ArtifactError(f"the structure changes {missing[0]!r}, which the model does not have")
        if "block" in entry:
            old = modules[entry["names"][0]]
            replacements[old] = _build_block(entry["block"], old)
    for entry in structure["modules"]:
        if "resize" in entry:
            _resize_(modules[entry["names"][0]], entry)
    swap_(model, replacements)


def _build_block(arguments: Mapping[str, Any], old: nn.Module) -> CPDBlock:
    reference = next(iter(old.parameters()))
    options = dict(arguments)
    padding = options.pop("padding")
    block = CPDBlock(
        **options,
        padding=tuple(padding) if isinstance(padding, list) else padding,
        device=reference.device,
        dtype=reference.dtype,
    )
    block.train(old.training)
    block.requires_grad_(reference.requires_grad)
    return block


def _resize_(module: nn.Module, entry: Mapping[str, Any]) -> None:
    for name, shape in entry["resize"].items():
        old = _own_tensors(module)[name]
        new = torch.zeros(shape, dtype=old.dtype, device=old.device)
        if isinstance(old, nn.Parameter):
            setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
        else:
            module._buffers[name] = new
    for name, value in entry["attributes"].items():
        setattr(module, name, _thaw(value))
