"""How a model is run so that its channels can be followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from norton_plugin.blocks import CPDBlock
from norton_plugin.surgery.equality import convolve
from norton_plugin.surgery.labels.planes import along
from norton_plugin.surgery.labels.records import Rescale
from norton_plugin.surgery.labels.tracer import Tracer


@contextmanager
def plain_kernels() -> Iterator[None]:
    """While entered, attention runs as the elementary operations it is made of, so that they can be followed."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def dense_blocks(weights: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """While entered, every CPDBlock runs as the dense convolution it equals.

    Args:
        weights: The rebuilt weight of each.
    """
    with ExitStack() as stack:
        for block, weight in weights.items():
            stack.callback(block.__dict__.pop, "forward", None)
            block.forward = _dense_forward(block, weight)  # type: ignore[arg-type]
        yield


def _dense_forward(block: CPDBlock, weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: convolve(block, x, weight, block.bias)


@contextmanager
def module_stack(tracer: Tracer) -> Iterator[None]:
    """While entered, the tracer knows which modules run, and pins what enters code it cannot see."""
    tie = tracer.registry.shadows

    def enter(module: nn.Module, args: Any) -> None:
        tracer.stack.append(module)
        tracer.ran.add(module)
        if isinstance(module, nn.MultiheadAttention):
            with tracer.paused():
                _tie_attention(tracer, module, tie)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        while tracer.stack and tracer.stack.pop() is not module:
            pass
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if any(tensor.numel() for tensor in made):
            tracer.busy.add(module)
        if any(not tracer.seen(tensor) for tensor in made):
            with tracer.paused():
                for leaf in tree_leaves(args):
                    if isinstance(leaf, Tensor):
                        for plane in tracer.shadow(leaf).planes:
                            tracer.pin(plane, f"{type(module).__name__} computes in code that cannot be followed")

    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tie_attention(tracer: Tracer, module: nn.MultiheadAttention, shadows: Any) -> None:
    """nn.MultiheadAttention takes its inner width from that of its input: embedding and projections go together."""
    if module.in_proj_weight is None:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        rows = [along(shadows[w].planes[0], 0) for w in weights]
        columns = along(shadows[weights[0]].planes[1], 1)
        for row in rows:
            tracer.unite(row, columns)
        tracer.rescales.append(Rescale(rows[0], columns.view(module.num_heads, -1)[0], -0.5))
    else:
        planes = shadows[module.in_proj_weight].planes
        columns = along(planes[1], 1)
        rows = along(planes[0], 0).view(3, -1)
        tracer.unite(rows, columns[None])
        tracer.rescales.append(Rescale(rows[0], columns.view(module.num_heads, -1)[0], -0.5))
    heads = columns.view(module.num_heads, -1)
    tracer.unite(heads, heads[:1])
