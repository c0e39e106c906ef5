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
from norton_plugin.blocks.dense import convolve
from norton_plugin.channels.label_maps import Shadow, along, varying
from norton_plugin.channels.records import Rescale
from norton_plugin.channels.tracer import Tracer
from norton_plugin.reasons import Reason


@contextmanager
def plain_kernels() -> Iterator[None]:
    """While entered, attention and recurrent layers run as the elementary operations they are made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _plain_recurrence():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _plain_recurrence() -> Iterator[None]:
    """While entered, no fused kernel runs a recurrent layer; all other layers keep theirs."""
    before: list[tuple[Any, Any]] = []

    def enter(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.RNNBase):
            before.append((torch.backends.mkldnn.set_flags(False), torch.backends.cudnn.enabled))
            torch.backends.cudnn.enabled = False

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, nn.RNNBase) and before:
            restore()

    def restore() -> None:
        flags, cudnn = before.pop()
        torch.backends.mkldnn.set_flags(*flags)
        torch.backends.cudnn.enabled = cudnn

    try:
        with _calls(enter, leave):
            yield
    finally:
        while before:  # a layer raised
            restore()


@contextmanager
def _calls(enter: Callable[[nn.Module, Any], None], leave: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """While entered, the two functions hear of every call of a module, whatever model it belongs to."""
    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
        with tracer.paused():
            if isinstance(module, nn.MultiheadAttention):
                _tie_attention(tracer, module, tie)
            elif isinstance(module, nn.RNNBase):
                _fix_recurrent(tracer, module)

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
                            tracer.pin(plane, Reason.UNSEEN_CODE.because(module=type(module).__name__))

    with _calls(enter, leave):
        yield


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


def _fix_recurrent(tracer: Tracer, module: nn.RNNBase) -> None:
    """A recurrent layer keeps the width of its state; what its first layer reads may shrink."""
    for name, parameter in module.named_parameters(recurse=False):
        for plane in tracer.registry.shadows.get(parameter, Shadow()).planes:
            if varying(plane) != [1] or not name.startswith("weight_ih_l0"):
                tracer.pin(plane, Reason.RECURRENT.because())
