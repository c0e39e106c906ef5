"""The geometry of a model: shapes and plain attributes of every module, as JSON holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDBlock, CPDLinear
from norton_plugin.modules.feature_info import LISTED_WIDTHS, listed_widths
from norton_plugin.modules.output_selection import output_selection
from norton_plugin.modules.swap import names_by_identity

Geometry = dict[str, dict[str, Any]]
_PLAIN = (bool, int, float, str, type(None))
_IGNORED = {"training", "_is_full_backward_hook", "_version", "is_init", "_is_init"}


def _block_arguments(block: ConvBlock) -> dict[str, Any]:
    filterwise = not isinstance(block, CPDBlock) or block.mix is None
    shared = {} if filterwise else {"clusters": block.clusters, "cluster_size": block.cluster_size}
    return {
        **shared,
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


def _linear_arguments(layer: CPDLinear) -> dict[str, Any]:
    names = ("in_features", "out_features", "components")
    return {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}


def geometry(model: nn.Module) -> Geometry:
    """Return shapes and plain attributes of every module, by its first dotted name.

    Args:
        model: Any model; a block is described by its arguments.
    """
    described: Geometry = {}
    for module, names in names_by_identity(model).items():
        entry: dict[str, Any] = {"names": list(names)}
        if isinstance(module, ConvBlock):
            entry["block" if isinstance(module, CPDBlock) else "spatial"] = _block_arguments(module)
        elif isinstance(module, CPDLinear):
            entry["linear"] = _linear_arguments(module)
        else:
            shapes = {n: list(t.shape) for n, t in own_tensors(module).items()}
            plain = {k: v for k, v in vars(module).items() if _is_plain(v) and k not in _IGNORED}
            if widths := listed_widths(module):
                plain[LISTED_WIDTHS] = widths
            hidden = {n: list(t.shape) for n, t in kept_out(module).items()}
            entry |= {"shapes": shapes, "attributes": {k: freeze(v) for k, v in plain.items()}, "kept_out": hidden}
            if (selection := output_selection(module)) is not None:
                entry["selected"] = {"dim": selection.dim, "size": selection.size, "kept": list(selection.kept)}
        described[names[0]] = entry
    return described


def lasting(dense: Geometry, ran: Geometry) -> Geometry:
    """Return a geometry without the attributes that a run alone changes, such as the shape of the last image.

    Args:
        dense: Of a model.
        ran: Of the same model after a run.
    """
    return {
        name: {
            **entry,
            "attributes": {
                key: value
                for key, value in entry["attributes"].items()
                if name not in ran or ran[name]["attributes"].get(key) == value
            },
        }
        if "attributes" in entry
        else entry
        for name, entry in dense.items()
    }


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and those buffers that belong to the state dict.

    The other buffers may appear and disappear as the model runs.
    """
    buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    return {name: tensor for name, tensor in {**module._parameters, **buffers}.items() if tensor is not None}


def kept_out(module: nn.Module) -> dict[str, Tensor]:
    """Return buffers that do not belong to the state dict."""
    names = module._non_persistent_buffers_set
    return {name: tensor for name, tensor in module._buffers.items() if name in names and tensor is not None}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return isinstance(value, _PLAIN)


def freeze(value: Any) -> Any:
    """Mark tuples, which JSON does not have, so that they come back as tuples."""
    if isinstance(value, tuple):
        return {"tuple": [freeze(v) for v in value]}
    return [freeze(v) for v in value] if isinstance(value, list) else value


def thaw(value: Any) -> Any:
    """Bring marked tuples back."""
    if isinstance(value, Mapping):
        items = value.get("tuple")
        return tuple(thaw(v) for v in items) if len(value) == 1 and isinstance(items, list) else value
    return [thaw(v) for v in value] if isinstance(value, list) else value


def kind_of_block(entry: Mapping[str, Any]) -> str | None:
    """Return the key under which an entry holds the arguments of a block; None where it describes another module."""
    return next((kind for kind in ("block", "spatial", "linear") if kind in entry), None)
