"""Tied layers that a decomposition parts: each block has factors of its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from norton_plugin.modules.holders import parameter_holders


@dataclass(frozen=True)
class UntiedLayers:
    """Layers that held one and the same parameter, until at least one of them became a block.

    Attributes:
        blocks: First dotted names of those that became blocks.
        kept: Of the other modules, which hold the parameter still.
    """

    blocks: tuple[str, ...]
    kept: tuple[str, ...] = ()


def untied_layers(model: nn.Module, replaced: Collection[nn.Module]) -> tuple[UntiedLayers, ...]:
    """Return what is no longer tied once some layers are replaced by blocks.

    Args:
        model: Before they are replaced.
        replaced: The layers.

    Returns:
        One entry for all parameters of the same holders, in the model's order.
    """
    modules = dict(model.named_modules())
    found: dict[UntiedLayers, None] = {}
    for names in parameter_holders(model).values():
        blocks = tuple(name for name in names if modules[name] in replaced)
        if blocks and len(names) > 1:
            kept = tuple(name or "the model itself" for name in names if name not in blocks)
            found[UntiedLayers(blocks, kept)] = None
    return tuple(found)
