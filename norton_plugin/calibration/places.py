"""What is known of a layer's place in a run: how often it is called, and which sum its output is part of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from norton_plugin.calibration.operations import Function

# Channels whose scale is below this share of the largest carry too little to repair anything.
_LEAST_SCALE = 1e-3


@dataclass(frozen=True)
class Step:
    """One operation between a layer and the addition.

    Attributes:
        scale: Factor, broadcasts to the result; None for a change of shape.
        order: Of the dimensions, for a permutation.
        shape: Of its input, for another change of shape.
    """

    scale: Tensor | None = None
    order: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None

    def undo(self, difference: Tensor) -> Tensor:
        """Return the difference before the operation that makes this difference after it; 0 where the scale is 0."""
        if self.scale is not None:
            scale = self.scale.to(difference)
            small = scale.abs() <= _LEAST_SCALE * scale.abs().amax()
            return torch.where(small, 0.0, difference / torch.where(small, 1.0, scale))
        if self.order is not None:
            return difference.permute([self.order.index(i) for i in range(len(self.order))])
        return difference.reshape(-1, *(self.shape or ())[1:])


Key = tuple[int, int]


@dataclass(frozen=True)
class Operation:
    """One operation of the run.

    Attributes:
        what: A function, or a layer.
        args: Positional arguments.
        kwargs: Keyword arguments.
        results: Tensors that it returned.
    """

    what: Function | nn.Module
    args: Any
    kwargs: dict[str, Any]
    results: list[Tensor]

    @property
    def name(self) -> str:
        """Name of the function; empty for a layer."""
        return "" if isinstance(self.what, nn.Module) else getattr(self.what, "__name__", str(self.what))

    def argument(self, position: int, name: str) -> Any:
        """Return an argument that may be given either way; None where it is not given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)


@dataclass(frozen=True)
class Summand:
    """What a layer's output is added to, computed from tensors that are there before the layer is called.

    Attributes:
        sources: Operations that made those tensors, and which of their results: what `OperationCounter` has to keep.
        originals: The same tensors in the run that was followed.
        replayed: Operations from there to the summand, such as the padding of a shortcut.
        result: The summand in the run that was followed.
    """

    sources: tuple[Key, ...]
    originals: tuple[Tensor, ...]
    replayed: tuple[Operation, ...]
    result: Tensor

    def fits(self, kept: dict[int, list[Tensor]]) -> bool:
        """Tell whether another run kept what this needs: its operations are those of the run that was followed."""
        for old, (place, index) in zip(self.originals, self.sources, strict=True):
            found = kept.get(place, [])
            if index >= len(found) or found[index].dim() != old.dim() or found[index].shape[1:2] != old.shape[1:2]:
                return False
        return True

    def compute(self, kept: dict[int, list[Tensor]]) -> Tensor:
        """Return the summand in another run, from what it kept."""
        known = {id(old): kept[p][i] for old, (p, i) in zip(self.originals, self.sources, strict=True)}

        def renewed(leaf: Any) -> Any:
            return known.get(id(leaf), leaf)

        for operation in self.replayed:
            args, kwargs = tree_map(renewed, (operation.args, operation.kwargs))
            output = operation.what(*args, **kwargs)
            made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            known.update({id(old): new for old, new in zip(operation.results, made, strict=True)})
        return known[id(self.result)]


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer stands in the run of a model.

    Attributes:
        module: The layer.
        calls: How often it is called.
        norm: The BatchNorm that reads its output, and nothing else does; None where there is none.
        channel_scale: Factor of each output channel up to the addition (or behind the BatchNorm), (N,) or None.
        other: The other summand; None where the output is not added to a stream that is there before.
        steps: From the layer to the addition.
        chosen: Whether values decide what it reads, as boxes of a detector.
    """

    module: nn.Module
    calls: int
    norm: nn.Module | None
    channel_scale: Tensor | None
    other: Summand | None
    steps: tuple[Step, ...]
    chosen: bool

    def correction(self, dense: Tensor, compressed: Tensor) -> Tensor:
        """Return what has to be added to the layer's dense output, so that the sum is that of the dense model.

        Args:
            dense: The other summand in the dense model.
            compressed: The same in the compressed one.
        """
        return self.undone(dense - compressed)

    def undone(self, tensor: Tensor) -> Tensor:
        """Return the tensor at the layer's output that makes this one at the addition, shifts left out."""
        for step in reversed(self.steps):
            tensor = step.undo(tensor)
        return tensor
