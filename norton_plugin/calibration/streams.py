"""Where the output of a layer is added to a stream, found by following one run of the dense model.

In a residual network the sum is what counts: a layer whose output is added to a stream that carries an error can take
that error back. What is followed: a BatchNorm (a scale and a shift of channels), per-channel scales, changes of shape,
and then an addition whose other summand is there before the layer is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.calibration.operations import Function, OperationCounter
from norton_plugin.calibration.places import Key, LayerPlace, Operation, Step, Summand

# Operations from tensors before the layer to the other summand.
_MOST_REPLAYED = 16
_SAME = {"dropout", "dropout2d", "feature_dropout", "contiguous", "clone", "detach", "to", "float"}
_SHAPES = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"}
_PRODUCTS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__"}
_SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
# Their results depend on the order of values: two streams of activations may choose different things.
CHOICES = {"topk", "sort", "argsort", "argmax", "argmin", "nonzero", "unique", "nms", "batched_nms", "masked_select"}


class StreamTrace(OperationCounter):
    """Follows one run.

    Args:
        model: Its BatchNorms are recognised by their buffers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._operations: list[Operation] = []
        self._labels: list[int] = []  # operation -> its place, by which another run finds it
        self._made: dict[int, Key] = {}  # id of a tensor -> operation and which of its results
        self._read: dict[Key, list[int]] = {}  # a result -> operations that read it
        self._sources: list[list[Key]] = []  # operation -> results that it reads
        self._chosen: set[int] = set()
        self._norms = {id(m.running_mean): m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        self._constants = {id(t) for t in (*model.parameters(), *model.buffers())}

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        # It returns nothing, and what is written to chosen places is chosen: regions of a detector are collected so.
        written = getattr(func, "__name__", "") == "__setitem__"
        if written and any(id(leaf) in self._chosen for leaf in tree_leaves(args[1:])):
            self._chosen.add(id(args[0]))
        return output

    def note(self, what: Function | nn.Module, args: Any, kwargs: dict[str, Any], results: list[Tensor]) -> None:
        """Record one operation."""
        place, operation = len(self._operations), Operation(what, args, kwargs, results)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._sources.append([self._made[id(tensor)] for tensor in read if id(tensor) in self._made])
        for key in self._sources[-1]:
            self._read.setdefault(key, []).append(place)
        if operation.name in CHOICES or any(id(tensor) in self._chosen for tensor in read):
            self._chosen |= {id(tensor) for tensor in results}
        if read and all(id(tensor) in self._constants for tensor in read):
            self._constants |= {id(tensor) for tensor in results}
        self._labels.append(self.count)
        self._operations.append(operation)  # holds the tensors, so that no id is used again
        for position, tensor in enumerate(results):
            self._made[id(tensor)] = (place, position)
        super().note(what, args, kwargs, results)

    def places(self, layers: Sequence[nn.Module]) -> list[LayerPlace]:
        """Return where these layers stand, in the order of their first calls; those that did not run are left out."""
        calls = Counter(op.what for op in self._operations if isinstance(op.what, nn.Module))
        used = Counter(id(op.argument(1, "running_mean")) for op in self._operations if op.name == "batch_norm")
        self._norms = {key: norm for key, norm in self._norms.items() if used[key] == 1}
        found, wanted = [], set(layers)
        for place, operation in enumerate(self._operations):
            if operation.what in wanted and isinstance(operation.what, nn.Module):
                wanted.remove(operation.what)
                found.append(self._follow(place, operation.what, calls[operation.what]))
        return found

    def _follow(self, place: int, layer: nn.Module, calls: int) -> LayerPlace:
        chosen = any(id(t) in self._chosen for t in tree_leaves(self._operations[place].args))
        norm: nn.Module | None = None
        scale: Tensor | None = None
        steps: list[Step] = []
        here, other = (place, 0), None
        while (
            calls == 1 and len(readers := self._read.get(here, [])) == 1 and len(self._operations[here[0]].results) == 1
        ):
            operation = self._operations[readers[0]]
            tensor = self._operations[here[0]].results[here[1]]
            if operation.name in _SUMS and not self._shifts(operation, tensor):
                other = self._other_summand(readers[0], tensor, layer=place)
                break
            step = self._step(operation, tensor)
            if step is None:
                break
            if not steps and operation.name == "batch_norm":
                norm = self._norms.get(id(operation.argument(1, "running_mean")))
            if step.scale is not None and step.scale.numel() in (1, max(step.scale.shape, default=1)):
                scale = step.scale.flatten() if scale is None else scale * step.scale.flatten()
            steps += [step] if step != Step() else []
            here = (readers[0], 0)
        return LayerPlace(layer, calls, norm, scale, other, tuple(steps), chosen)

    def _other_summand(self, addition: int, tensor: Tensor, *, layer: int) -> Summand | None:
        """Return the other summand, if it is of the same shape and does not need the layer, or one after it."""
        operation = self._operations[addition]
        if len(operation.args) != 2 or operation.kwargs:
            return None
        others = [t for t in operation.args if t is not tensor and isinstance(t, Tensor)]
        if len(others) != 1 or others[0].shape != tensor.shape:
            return None
        wanted = [key for key in self._sources[addition] if self._tensor(key) is others[0]]
        sources: dict[Key, None] = {}
        replayed: set[int] = set()
        while wanted:
            key = wanted.pop()
            if key[0] < layer:
                sources[key] = None
            elif not self._replayable(self._operations[key[0]]) or len(replayed) > _MOST_REPLAYED:
                return None
            elif key[0] not in replayed:
                replayed.add(key[0])
                wanted += self._sources[key[0]]
        if not sources:
            return None
        operations = tuple(self._operations[place] for place in sorted(replayed))
        places = tuple((self._labels[place], result) for place, result in sources)
        return Summand(places, tuple(map(self._tensor, sources)), operations, others[0])

    def _tensor(self, key: Key) -> Tensor:
        return self._operations[key[0]].results[key[1]]

    @staticmethod
    def _replayable(operation: Operation) -> bool:
        """Tell whether an operation is a function that changes nothing in place."""
        name = operation.name
        in_place = name.endswith("_") and (not name.endswith("__") or name.startswith(("__i", "__set")))
        return (
            not isinstance(operation.what, nn.Module) and not in_place and operation.kwargs.get("inplace") is not True
        )

    def _shifts(self, operation: Operation, tensor: Tensor) -> bool:
        """Tell whether an operation adds a constant, as a norm written out does."""
        others = [t for t in operation.args if isinstance(t, Tensor) and t is not tensor]
        constant = all(id(t) in self._constants for t in others) and not operation.kwargs
        return operation.name in _SUMS and constant and operation.results[0].shape == tensor.shape

    def _step(self, operation: Operation, tensor: Tensor) -> Step | None:
        """Return what an operation does to a tensor, None where it cannot be undone."""
        name, result = operation.name, operation.results[0]
        if self._shifts(operation, tensor):
            return Step()
        if name == "batch_norm" and not operation.argument(5, "training"):
            weight = operation.argument(3, "weight")
            variance, eps = operation.argument(2, "running_var"), operation.argument(7, "eps")
            if variance is None:
                return None
            scale = (variance.double() + (1e-5 if eps is None else eps)).rsqrt()
            scale = scale if weight is None else scale * weight.double()
            return Step(scale=scale.view(-1, *(1,) * (tensor.dim() - 2)))
        if name in _PRODUCTS:
            factors = [t for t in operation.args if isinstance(t, Tensor) and t is not tensor]
            if len(factors) == 1 and id(factors[0]) in self._constants and result.shape == tensor.shape:
                return Step(scale=factors[0].detach())
            return None
        if name in _SAME and result.shape == tensor.shape:
            return Step()
        if name in ("permute", "transpose"):
            return self._permutation(operation, tensor)
        if name in _SHAPES and tensor.dim() and result.shape[:1] == tensor.shape[:1]:
            return Step(shape=tuple(tensor.shape))
        return None

    @staticmethod
    def _permutation(operation: Operation, tensor: Tensor) -> Step | None:
        """Return the order of dimensions of a permutation or transposition."""
        dims = list(range(tensor.dim()))
        given = operation.args[1:]
        if operation.kwargs:
            return None
        if operation.name == "transpose":
            a, b = given
            dims[a], dims[b] = dims[b], dims[a]
            return Step(order=tuple(dims))
        order = given[0] if len(given) == 1 and isinstance(given[0], list | tuple | torch.Size) else given
        return Step(order=tuple(int(i) % tensor.dim() for i in order))
