"""Run the unpruned model as if channels were removed, by what the trace noted of every operation."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from norton_plugin.channels.dispatch import operation_name, run_decomposed
from norton_plugin.channels.label_maps import core
from norton_plugin.channels.records import Step


class MaskedReplay(TorchDispatchMode):
    """While entered, removed channels have no effect: sums leave them out, statistics are those of the kept ones.

    The model has to run the same operations as in the trace, on inputs of the same shapes.

    Args:
        steps: As the trace noted them.
        removed: (L,) bool, labels that are removed.
    """

    def __init__(self, steps: dict[tuple[str, int], Step], removed: Tensor) -> None:
        super().__init__()
        self._steps = steps
        self._removed = removed
        self._counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (out := run_decomposed(self, func, args, kwargs)) is not NotImplemented:
            return out
        name = operation_name(func)
        step = self._steps.get((name, self._counts[name]))
        self._counts[name] += 1
        if step is not None:
            removed = [(label_map, self._removed[core(label_map)]) for label_map in step.maps]
            removed = [(label_map, mask) for label_map, mask in removed if bool(mask.any())]
            if removed:
                return step.masking.run(func, args, kwargs, removed)
        return func(*args, **kwargs)
