"""Where a compressed model and the dense one are compared on the way to their outputs: at the outputs of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.modules.running import output_tensors

_LAYERS = (ConvBlock, CPDLinear, nn.modules.conv._ConvNd, nn.Linear)
# They only hold modules; what reads a list of them is further up.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the blocks whose outputs are compared, in the model's order.

    A block is the nearest module above a layer that is more than a container: a residual block, the layers of a
    neck with their norm, an attention. A layer that only containers, and the model itself, stand above counts as one.

    Args:
        model: Compressed; its blocks have their old names.
    """
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    for name, module in modules.items():
        if not name or not isinstance(module, _LAYERS):
            continue
        above = name.rpartition(".")[0]
        while above and isinstance(modules[above], _CONTAINERS):
            above = above.rpartition(".")[0]
        found[above or name] = None
    return tuple(found)


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While entered, keep the tensors that the named modules return, call after call.

    Args:
        model: Run by the caller, once.
        names: Dotted names of its modules.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, output, into=seen[name]: into.extend(output_tensors(output))
        )
        for name in names
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
