"""How a model is run so that its channels can be followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from norton_plugin.channels.layers import layer_type
from norton_plugin.channels.returned import label_returned
from norton_plugin.channels.trace import Trace
from norton_plugin.channels.tracer import Tracer
from norton_plugin.modules.output_selection import output_selection
from norton_plugin.modules.running import traceable
from norton_plugin.reasons import Reason


@contextmanager
def followable(model: nn.Module, dense_weights: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """While entered, the model runs in evaluation mode and by operations that the graph knows.

    Args:
        model: Its flags come back.
        dense_weights: The dense weight of each module that is to run as its dense equivalent.
    """
    with traceable(model), plain_kernels(), as_dense(dense_weights):
        yield


@contextmanager
def plain_kernels() -> Iterator[None]:
    """While entered, attention and recurrent layers run as the elementary operations that they consist of."""
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

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
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
def _calls(enter: Callable[[nn.Module, Any], None], leave: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    """While entered, the two functions are called around every call of a module, whatever model it belongs to.

    Args:
        enter: Is given the module and its positional arguments.
        leave: Is given the module, all its arguments and its output; what it returns takes the output's place.
    """

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return leave(module, (args, kwargs), output)

    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def as_dense(weights: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """While entered, modules with a dense equivalent run as that.

    Args:
        weights: The dense weight of each.
    """
    with ExitStack() as stack:
        for module, weight in weights.items():
            layer = layer_type(module)
            if layer is not None and layer.dense is not None:
                stack.callback(module.__dict__.pop, "forward", None)
                module.forward = partial(layer.dense.forward, module, weight)
        yield


def _pin_unseen(trace: Trace, module: nn.Module, inputs: Any) -> None:
    """Pin the channels that enter a module whose output no operation is known to have made."""
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            for label_map in trace.labels_of(leaf).maps:
                trace.pin(label_map, Reason.UNSEEN_CODE.because(module=type(module).__name__))


@contextmanager
def watched_modules(tracer: Tracer) -> Iterator[None]:
    """While entered, the trace knows which modules run, and channels that enter code outside of PyTorch are pinned."""
    trace = tracer.trace

    def enter(module: nn.Module, args: Any) -> None:
        trace.module_stack.append(module)
        trace.notes.ran.add(module)
        if trace.unsure:
            with tracer.paused():
                trace.pin_visible(tree_leaves(args))
        layer = layer_type(module)
        if layer is None:
            return
        with tracer.paused():
            if layer.before_run is not None:
                layer.before_run(trace, module)
            for position in layer.places:
                for label_map in trace.labels_of(args[position]).maps if position < len(args) else ():
                    trace.pin(label_map, Reason.POSITIONS_OR_HEADS.because())

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        while trace.module_stack and trace.module_stack.pop() is not module:
            pass
        selection = output_selection(module)
        if selection is not None:
            # Here already, so that what it leaves gets labels; the module's own hook finds nothing left to do.
            output = selection(module, (), output)
        with tracer.paused():
            label_returned(trace, module, inputs, output)
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if trace.unsure:
            with tracer.paused():
                trace.pin_visible(made)
        if any(tensor.numel() for tensor in made):
            trace.notes.produced_output.add(module)
        if any(not trace.knows(tensor) for tensor in made):
            with tracer.paused():
                _pin_unseen(trace, module, inputs)
        return output

    with _calls(enter, leave):
        yield
