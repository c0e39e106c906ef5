"""What two versions of a model are compared by: outputs that follow no choice among values, or what stands before it.

A detector sorts its boxes, keeps some, and may keep none at all. Two models that compute nearly the same return other
boxes in another order; the maps that boxes are chosen from can be compared. A choice among values that no layer
computed, as of fixed regions by their size, is the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.calibration.lockstep import followed
from norton_plugin.calibration.operations import Function, OperationCounter
from norton_plugin.calibration.streams import CHOICES
from norton_plugin.modules.running import output_tensors

Call = Callable[[nn.Module, Any], Any]
# Functions that ask tensors for a type, a device or a shape alone, and of how many arguments they hand on more.
_READ_BY = dict.fromkeys(("to", "type_as", "view_as", "expand_as"), 1) | dict.fromkeys(
    ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "zeros_like", "ones_like", "full_like",
     "empty_like"), 0)  # fmt: skip
# Attribute of a tensor that holds its origin while a run is followed.
_MARK = "_norton_origin"


@dataclass(frozen=True)
class ComparableOutputs:
    """Which tensors of a run are compared; they are found once, in the dense model.

    Attributes:
        places: Positions in ``output_tensors`` of what the model returns; empty where layers take its place.
        layers: Names of layers whose outputs are compared instead.
    """

    places: tuple[int, ...]
    layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, dense: nn.Module, batch: Any, call: Call) -> ComparableOutputs:
        """Find them in a run of the dense model.

        Logits (B, classes) are compared in any case. Where values choose every other output, or there is none, the last
        layers before a choice are compared: those whose outputs no further layer reads but behind a choice.

        Args:
            dense: In evaluation mode.
            batch: One batch; of a call without gradients.
            call: Runs a model on a batch.
        """
        layers: dict[nn.Module, str] = {
            module: name
            for name, module in dense.named_modules()
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        }
        trace = _Origins()
        found = output_tensors(followed(trace, list(layers), partial(call, dense, batch)))
        every = tuple(range(len(found)))
        if are_logits(found):
            return cls(every)
        plain = tuple(i for i in every if found[i].numel() and not trace.chose(found[i]))
        if plain:
            return cls(plain)
        return cls((), tuple(layers[layer] for layer in trace.last)) if trace.last else cls(every)

    def read(self, model: nn.Module, batch: Any, call: Call) -> list[Tensor]:
        """Run a model and return the tensors; empty ones where it returns fewer."""
        seen: list[Tensor] = []
        hooks = [
            model.get_submodule(name).register_forward_hook(lambda *run: seen.append(run[2])) for name in self.layers
        ]
        try:
            outputs = output_tensors(call(model, batch))
        finally:
            for hook in hooks:
                hook.remove()
        if self.layers:
            return [tensor for tensor in seen if isinstance(tensor, Tensor)]
        return [outputs[i] if i < len(outputs) else torch.empty(0) for i in self.places]


def are_logits(tensors: Sequence[Tensor]) -> bool:
    """Tell whether the outputs of a model are those of a classifier, one tensor (B, classes)."""
    return len(tensors) == 1 and tensors[0].dim() == 2 and tensors[0].shape[1] > 1


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from.

    Attributes:
        trace: The run that it is part of.
        layers: The last layers before it.
        chosen: Whether values decided what it holds.
    """

    trace: _Origins
    layers: frozenset[nn.Module]
    chosen: bool


class _Origins(OperationCounter):
    """Follows the tensors of one run.

    Attributes:
        last: Layers that read nothing chosen, and that no such layer reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[nn.Module, None] = {}

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        if getattr(func, "__name__", "") == "__setitem__":  # it returns nothing, and changes its first argument
            self._mark([args[0]], self._origin(args))
        return output

    def note(self, what: Function | nn.Module, args: Any, kwargs: dict[str, Any], results: list[Tensor]) -> None:
        """Tell the results of an operation where they come from."""
        super().note(what, args, kwargs, results)
        origin = self._origin((args, kwargs))
        if isinstance(what, nn.Module):
            if not origin.chosen:
                for layer in origin.layers:
                    self.last.pop(layer, None)
                self.last[what] = None
            origin = _Origin(self, frozenset([what]), origin.chosen)
        else:
            name = getattr(what, "__name__", "")
            if name in _READ_BY:
                origin = self._origin(args[: _READ_BY[name]])
            if self._origin(_deciding(name, args, kwargs)).layers:
                origin = _Origin(self, origin.layers, True)
        self._mark(results, origin)

    def chose(self, tensor: Tensor) -> bool:
        """Tell whether values decided what a tensor holds."""
        return self._origin(tensor).chosen

    def _origin(self, read: Any) -> _Origin:
        found = [vars(leaf).get(_MARK) for leaf in tree_leaves(read) if isinstance(leaf, Tensor)]
        own = [origin for origin in found if origin is not None and origin.trace is self]
        return _Origin(self, frozenset().union(*(o.layers for o in own)), any(o.chosen for o in own))

    @staticmethod
    def _mark(tensors: Sequence[Any], origin: _Origin) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                vars(tensor)[_MARK] = origin


def _deciding(name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return the arguments whose order, or which of them are large, decides what a function returns; often none."""
    if name == "__getitem__":
        return [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
    return (args, kwargs) if name in CHOICES else ()
