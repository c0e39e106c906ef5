"""What changes of single layers cost, measured: the divergence of the whole model's outputs on a few images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.divergence import Comparison
from norton_plugin.calibration.input_moments import InputMoments
from norton_plugin.modules.running import traceable

# Name of a layer -> its weight, and what is added to its outputs.
Changes = Mapping[str, tuple[Tensor, Tensor]]


class MeasuredDivergence:
    """Measures what new weights of some layers do to the outputs.

    Args:
        model: Changed while something is measured, and restored.
        moments: Of its layers.
        batches: Unlabelled images.
        call: Runs the model on a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        moments: InputMoments,
        batches: Sequence[Any],
        *,
        call: Callable[[nn.Module, Any], Any],
    ) -> None:
        self._model, self.moments = model, moments
        with traceable(model):
            self._unchanged = Comparison(model, batches, call)

    def settable(self, name: str) -> bool:
        """Tell whether a layer has moments, and a weight of its own that can be set."""
        if not self.moments.reached(name):
            return False
        weight = self._model.get_submodule(name)._parameters.get("weight")
        return weight is not None and torch.equal(weight.flatten(), self.moments.contracts[name].weight.flatten())

    def of(self, changes: Changes) -> float:
        """Return the divergence from the unchanged model."""
        with traceable(self._model), self._changed(changes):
            return self._unchanged.of(self._model)

    @contextmanager
    def _changed(self, changes: Changes) -> Iterator[None]:
        tensors: list[tuple[Tensor, Tensor]] = []
        for name, (weight, shift) in changes.items():
            layer, norm = self._model.get_submodule(name), self.moments.norms.get(name)
            own: Tensor = layer.weight  # type: ignore[assignment]
            tensors.append((own.data, weight.to(own).view_as(own)))
            bias = getattr(layer, "bias", None)
            if bias is not None:
                tensors.append((bias.data, bias.data + shift.to(bias)))
            elif norm is not None:
                mean: Tensor = norm.running_mean  # type: ignore[assignment]
                tensors.append((mean, mean - shift.to(mean)))
        old = [(tensor, tensor.clone()) for tensor, _ in tensors]
        try:
            for tensor, value in tensors:
                tensor.copy_(value)
            yield
        finally:
            for tensor, value in old:
                tensor.copy_(value)
