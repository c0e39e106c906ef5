"""Which modules read what a layer returns, seen in one run of the model: every operation, whoever calls it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Readers(TorchDispatchMode):
    """Follows the outputs of some layers to the modules that read them.

    Modules are known by their calls, tensors by their identity, and every operation below them is seen, those of
    functions, scripts and other libraries too. So what is missing from ``of`` was not read by anything else.

    Args:
        layers: Modules whose outputs are followed.
        readers: Modules whose reading counts as theirs; whatever else reads is ``None``.

    Attributes:
        of: For every layer that ran, who read its outputs, in all its calls; ``None`` for anybody but a reader, or for
            an output that outlived the run.
        sources: For every reader that ran, whose outputs it was called with; ``None`` for anything else.
        shared: Layers whose weight something outside of them reads.
    """

    def __init__(self, layers: Collection[nn.Module], readers: Collection[nn.Module]) -> None:
        super().__init__()
        self.of: dict[nn.Module, set[nn.Module | None]] = {}
        self.sources: dict[nn.Module, set[nn.Module | None]] = {}
        self.shared: set[nn.Module] = set()
        self._layers, self._readers = set(layers), set(readers)
        self._weights = {id(w): m for m in layers if (w := m._parameters.get("weight")) is not None}
        self._stack: list[nn.Module] = []
        self._outputs: dict[int, tuple[weakref.ref[Tensor], nn.Module]] = {}

    def watch(self, model: nn.Module, run: Callable[[], Any]) -> None:
        """Run the model once and remember.

        Args:
            model: Holds the layers and readers.
            run: Calls it.
        """
        with ExitStack() as stack:
            for module in model.modules():
                if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    stack.callback(module.register_forward_pre_hook(self._enter).remove)
                    stack.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            with self:
                outputs = tree_leaves(run())
        for reference, layer in self._outputs.values():
            if reference() is not None:  # returned, or kept for later
                self.of[layer].add(None)
        del outputs

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        if module in self._readers:
            given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
            self.sources.setdefault(module, set()).update(self._layer_of(leaf) for leaf in given)
        self._stack.append(module)

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._stack.pop()
        if module in self._layers and isinstance(output, Tensor):
            self.of.setdefault(module, set())
            self._outputs[id(output)] = (weakref.ref(output), module)

    def _layer_of(self, tensor: Tensor) -> nn.Module | None:
        """Return the layer that a tensor came from; another tensor may have got the address of one that is gone."""
        reference, layer = self._outputs.get(id(tensor), (None, None))
        return layer if reference is not None and reference() is tensor else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note who reads, then run the operation."""
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor):
                self._read(leaf)
        return func(*args, **(kwargs or {}))

    def _read(self, tensor: Tensor) -> None:
        owner = self._weights.get(id(tensor))
        if owner is not None and owner not in self._stack:
            self.shared.add(owner)
        layer = self._layer_of(tensor)
        if layer is not None:
            reader = next((module for module in reversed(self._stack) if module in self._readers), None)
            self.of[layer].add(reader)
