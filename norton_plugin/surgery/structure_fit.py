"""Whether an entry of a structure can be what surgery made of the module at hand.

Surgery takes positions out of tensors, lowers the numbers that count them, and gives a convolution's place to a block
of the same geometry. Nothing else is accepted, so that a structure from anyone asks for no more memory and no other
work than the dense model, and reaches nothing of a module but its tensors and its plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from norton_plugin.blocks import CPD_BLOCKS, ConvBlock, CPDLinear, SpatialSVDBlock
from norton_plugin.blocks.convolutions import LAYERS
from norton_plugin.blocks.padding import normalise_padding
from norton_plugin.channels.rescaling import names_a_scale
from norton_plugin.cpd import full_components, full_spatial_rank
from norton_plugin.modules.feature_info import LISTED_WIDTHS, listed_widths
from norton_plugin.modules.output_selection import has_weights
from norton_plugin.surgery.structure_arguments import LARGEST, damaged, is_whole, shortened
from norton_plugin.surgery.structure_entries import (
    BlockEntry,
    LinearEntry,
    ResizeEntry,
    SpatialEntry,
)


def may_become(name: str, old: Any, new: Any) -> bool:
    """Tell whether surgery may replace one value of an attribute by another.

    Args:
        name: Of the attribute.
        old: The module's own value.
        new: An integer, or a list or a tuple of as many integers as before; each is positive, or as it was. Or, of an
            attribute that is named like the scale of attention, a number between 0 and 1 that is no lower than before:
            a power of a width that was lowered.
    """
    if type(old) is not type(new):
        return False
    if type(old) is float:
        return names_a_scale(name) and bool(0 < old <= new <= 1)
    if is_whole(old):
        return bool(old == new or 1 <= new <= LARGEST)
    if not isinstance(old, list | tuple) or len(old) != len(new):
        return False
    return all(is_whole(a) and is_whole(b) and may_become(name, a, b) for a, b in zip(old, new, strict=True))


def check_resize(entry: ResizeEntry, module: nn.Module, own: Mapping[str, Tensor]) -> None:
    """Check that an entry cuts tensors that the module has, and renews attributes that it has.

    Args:
        entry: What is to change.
        module: What it names.
        own: Parameters and buffers of the module itself, by name.

    Raises:
        ArtifactError: A tensor is absent or would grow, or an attribute is absent, private or of another type.
    """
    where = entry.names[0] or "the model"
    if isinstance(module, ConvBlock | CPDLinear):
        raise damaged(f"the entry of {where}", f"new sizes for a {type(module).__name__}", "the arguments of one")
    if entry.selected is not None and has_weights(module):
        raise damaged(f"'selected' of {where}", type(module).__name__, "a module without weights")
    for name, shape in entry.shapes.items():
        if name not in own:
            raise damaged(f"a tensor of {where}", name, f"one of {sorted(own)}")
        old = tuple(own[name].shape)
        if len(shape) != len(old) or any(n > o or n < min(1, o) for n, o in zip(shape, old, strict=True)):
            raise damaged(f"the shape of {where}.{name}", shape, f"part of {old}")
    held = {**vars(module), LISTED_WIDTHS: listed_widths(module)}
    for name, value in entry.attributes.items():
        if name.startswith("_") or name not in held:
            raise damaged(f"an attribute of {where}", name, "a public one that the module has")
        own_value = held[name]
        if not may_become(name, own_value, value):
            expected = f"positive numbers of the kind that {shortened(own_value)} is"
            raise damaged(f"the attribute {where}.{name}", value, expected)


def check_block(entry: BlockEntry | SpatialEntry, module: nn.Module) -> None:
    """Check that a block can take a module's place: a convolution of the same geometry and no fewer channels.

    Args:
        entry: What is to stand there.
        module: What stands there now.

    Raises:
        ArtifactError: It is no convolution, or an argument contradicts it.
    """
    where = entry.names[0] or "the model"
    axes = len(entry.arguments["kernel_size"])
    kind = SpatialSVDBlock if isinstance(entry, SpatialEntry) else CPD_BLOCKS[axes]
    if type(module) is not kind and not isinstance(module, LAYERS[axes]):
        expected = f"a {axes}-D convolution, which a {kind.__name__} replaces"
        raise damaged(f"{where} in the model", type(module).__name__, expected)
    kernel = _pair(module.kernel_size)
    fixed = {
        "kernel_size": kernel,
        "stride": _pair(module.stride),
        "dilation": _pair(module.dilation),
        "padding_mode": module.padding_mode,
        "bias": module.bias is not None,
    }
    for name, value in fixed.items():
        if entry.arguments[name] != value:
            raise damaged(f"{name} of the block {where}", entry.arguments[name], f"{value!r}, as of its convolution")
    per_filter = module.in_channels // module.groups
    if isinstance(entry, SpatialEntry):  # at most twice what the weight takes
        highest = full_spatial_rank(module.out_channels // module.groups, per_filter, (kernel[0], kernel[1]))
    else:
        highest = _highest_rank(entry.arguments.get("clusters"), module.out_channels, per_filter, kernel)
    highest = max(highest, module.rank if isinstance(module, ConvBlock) else 1)
    most = {
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "groups": module.groups,
        "rank": highest,
    }
    for name, limit in most.items():
        if entry.arguments[name] > limit:
            raise damaged(f"{name} of the block {where}", entry.arguments[name], f"at most {limit}")
    padding = entry.arguments["padding"]
    if not isinstance(padding, str) and padding != normalise_padding(module.padding, module.padding_mode, axes=axes):
        raise damaged(f"padding of the block {where}", padding, f"{module.padding!r}, as of its convolution")


def _highest_rank(clusters: int | None, filters: int, channels: int, kernel: Any) -> int:
    """Return the highest rank that a block has a use for.

    Args:
        clusters: K, None for filters that share nothing.
        filters: N of the dense convolution.
        channels: C of the dense convolution.
        kernel: (Kh, Kw).
    """
    pixels = math.prod(kernel)
    if clusters is None:
        return pixels  # exact, whatever the number of channels
    # Clusters of N / K filters, rounded up, are exact at Kh * Kw components for each filter. So the factors take at
    # most about twice what the weight takes.
    return min(full_components(filters, channels, kernel), (filters + clusters) * pixels // clusters)


def check_linear(entry: LinearEntry, module: nn.Module) -> None:
    """Check that a CPDLinear can take a module's place: a Linear layer of no fewer features.

    Args:
        entry: What is to stand there.
        module: What stands there now.

    Raises:
        ArtifactError: It is no Linear layer, or an argument contradicts it.
    """
    where = entry.names[0] or "the model"
    if not isinstance(module, nn.Linear | CPDLinear):
        raise damaged(f"{where} in the model", type(module).__name__, "a Linear layer, which a CPDLinear replaces")
    if entry.arguments["bias"] != (module.bias is not None):
        raise damaged(f"bias of the layer {where}", entry.arguments["bias"], "as of its Linear layer")
    most = {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "components": min(module.in_features, module.out_features),
    }
    for name, limit in most.items():
        if entry.arguments[name] > limit:
            raise damaged(f"{name} of the layer {where}", entry.arguments[name], f"at most {limit}")


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)
