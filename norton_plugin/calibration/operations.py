"""Counts the operations of a forward pass, so that two versions of a model can be held side by side.

Layers that are changed count as one operation each, whatever they do inside; so a dense model and a compressed one have
the same operations at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Function = Callable[..., Any]
# Places between a layer and the next one: what runs for every image before a layer shifts nothing behind it.
_STRIDE = 1 << 20


class OperationCounter(TorchFunctionMode):
    """While entered, counts functions of torch that return tensors, and keeps the results of some.

    Args:
        wanted: Places whose results are kept in ``kept``.

    Attributes:
        count: Place of the next operation: how many there were since the last layer, from a number of that layer's own.
        kept: Tensors that operations returned, by their places.
    """

    def __init__(self, wanted: Collection[int] = ()) -> None:
        super().__init__()
        self.count = 0
        self.kept: dict[int, list[Tensor]] = {}
        self._wanted = frozenset(wanted)
        self._depth = 0

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if tensors:
            self.made(tensors)
            if not self._depth:
                self.note(func, args, kwargs, tensors)
        return output

    def made(self, tensors: list[Tensor]) -> None:
        """See what a function returned, inside of layers too; for those that follow all tensors."""

    def enter(self) -> None:
        """Begin a layer: what it does inside is not counted."""
        self._depth += 1

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """End a layer, which is one operation."""
        self._depth -= 1
        if not self._depth:
            self.count = (self.count // _STRIDE + 1) * _STRIDE
            self.note(module, inputs, {}, [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)])

    def note(self, what: Function | nn.Module, args: Any, kwargs: dict[str, Any], results: list[Tensor]) -> None:
        """Count one operation.

        Args:
            what: The function, or the layer.
            args: Positional arguments.
            kwargs: Keyword arguments.
            results: Tensors that it returned.
        """
        if self.count in self._wanted:
            self.kept[self.count] = results
        self.count += 1
