"""The one counter of MACs and parameters: every matrix product and convolution that really runs is counted.

``torch.utils.flop_counter`` sees the operations below the modules, so products written as functions, attention and
repeated calls of a shared layer count as often as they run. It counts two operations per MAC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from norton_plugin.blocks import all_in_form
from norton_plugin.errors import NortonError, SurgeryError
from norton_plugin.modules.run_state import preserved_state

Call = Callable[[], Any]
MapSize = tuple[int, ...]


@dataclass(frozen=True)
class ModelCost:
    """Cost of one forward pass.

    Attributes:
        macs: Multiply-accumulates of the whole pass (of the whole batch that was given).
        parameters: Numbers in the parameters, shared ones once.
        layer_macs: MACs per module by its first dotted name, those of modules inside it left out; calls add up,
            modules without any are absent. Their sum is ``macs``, unless ``call`` computes something outside the
            model's own call.
        map_sizes: (input (H, W), output (H, W)) of every module that maps 4-D to 4-D, of its largest call; of 3-D and
            1-D convolutions with as many axes as their kernels have.
    """

    macs: int
    parameters: int
    layer_macs: dict[str, int]
    map_sizes: dict[str, tuple[MapSize, MapSize]]


class _LayerCounter:
    """Counts what each module of a model uses in one pass, by hooks before and after every call.

    Attributes:
        macs: Per module by its first dotted name, those of modules inside it left out.
        map_sizes: Of its largest call, of every module that maps 4-D to 4-D.
    """

    def __init__(self, total: FlopCounterMode) -> None:
        self.macs: Counter[str] = Counter()
        self.map_sizes: dict[str, tuple[MapSize, MapSize]] = {}
        self._total = total
        # Of every module now running: the count when it began, and what modules inside it have used.
        self._running: list[list[int]] = [[0, 0]]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While entered, the model's calls are counted."""
        handles = []
        try:
            for name, module in model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue  # takes no hooks
                handles.append(module.register_forward_pre_hook(self._before))
                handles.append(module.register_forward_hook(partial(self._after, name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, _: Any) -> None:
        self._running.append([self._total.get_total_flops(), 0])

    def _after(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        start, inside = self._running.pop()
        used = self._total.get_total_flops() - start
        self._running[-1][1] += used
        self.macs[name] += (used - inside) // 2
        first = inputs[0] if inputs else None
        dimensions = 2 + _axes(module)
        if isinstance(first, Tensor) and isinstance(output, Tensor) and first.dim() == output.dim() == dimensions:
            size = (tuple(first.shape[2:]), tuple(output.shape[2:]))
            if name not in self.map_sizes or size[0] > self.map_sizes[name][0]:
                self.map_sizes[name] = size


def _axes(module: nn.Module) -> int:
    """Return how many axes the maps of a module have: those of its kernel, two where it has none."""
    kernel = getattr(module, "kernel_size", None)
    return len(kernel) if isinstance(kernel, tuple) else 2


@contextmanager
def _evaluated_without_gradients(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode; no parameter needs a gradient. Flags come back."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        # torch's counter hooks the gradients of what modules are given, which fails for a parameter under no_grad.
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.no_grad(), preserved_state(model):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def count_cost(model: nn.Module, call: Call) -> ModelCost:
    """Count one forward pass in evaluation mode; flags are restored.

    CPDBlocks are counted in their separable form: ``R N (C Hi Wi + Kh Ho Wi + Kw Ho Wo)`` without clusters, and
    ``M (C Hi Wi + Kh Ho Wi + Kw Ho Wo) + N M / K Ho Wo`` for M components in K clusters (``blocks.coupled_cost``); a
    SpatialSVDBlock by its two convolutions, ``M (C Kh Ho Wi + N Kw Ho Wo)`` without groups (``blocks.spatial_cost``);
    a CPDLinear by its two products, ``M (C + N)`` a row.

    Args:
        model: Any model.
        call: Runs the model once, without arguments.

    Raises:
        SurgeryError: The call fails.
    """
    total = FlopCounterMode(display=False)
    layers = _LayerCounter(total)
    try:
        # By the factors, whichever of the equivalent forms is chosen for speed.
        with _evaluated_without_gradients(model), layers.watching(model), all_in_form(model, "separable"), total:
            call()
    except NortonError:  # it says itself what is wrong
        raise
    except Exception as error:
        first_line, _, _ = str(error).partition("\n")
        raise SurgeryError(
            f"the model does not run on the example inputs ({type(error).__name__}: {first_line}); "
            "give an example of the shape, dtype and device it expects"
        ) from error
    parameters = sum(p.numel() for p in model.parameters())
    own_macs = {name: macs for name, macs in layers.macs.items() if macs}
    return ModelCost(total.get_total_flops() // 2, parameters, own_macs, layers.map_sizes)
