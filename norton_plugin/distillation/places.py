"""Where a compressed model and the dense one are compared on the way to their outputs: at the outputs of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.modules.running import output_tensors

_LAYERS = (ConvBlock, CPDLinear, nn.modules.conv._ConvNd, nn.Linear)
# They only hold modules; what reads a list of them is further up.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Pairs = tuple[list[Tensor], list[Tensor]]


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


def alike(own: Sequence[Tensor], target: Sequence[Tensor]) -> Pairs:
    """Return the tensors that have the same shapes in both, and hold anything."""
    pairs = [(a, b) for a, b in zip(own, target, strict=False) if a.shape == b.shape and a.numel()]
    return [a for a, _ in pairs], [b for _, b in pairs]


def alike_at(
    own: Mapping[str, Sequence[Tensor]], targets: Mapping[str, Sequence[Tensor]], *, outputs: Sequence[Tensor]
) -> tuple[tuple[str, ...], Pairs]:
    """Return what can be compared of the outputs of blocks, and the names of these blocks.

    Args:
        own: What ``recorded`` kept of the compressed model.
        targets: What it kept of the dense one, under the same names.
        outputs: Of the compressed model; they are compared by themselves and do not count as outputs of blocks.
    """
    beside = {id(tensor) for tensor in outputs}
    names: list[str] = []
    pairs: Pairs = ([], [])
    for name, tensors in own.items():
        found = alike([tensor for tensor in tensors if id(tensor) not in beside], targets[name])
        if found[0]:
            names.append(name)
            pairs[0].extend(found[0])
            pairs[1].extend(found[1])
    return tuple(names), pairs
