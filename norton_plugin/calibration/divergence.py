"""How far the outputs of a compressed model are from those of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.comparable import ComparableOutputs, are_logits
from norton_plugin.calibration.lockstep import failures_explained
from norton_plugin.modules.running import output_tensors


@torch.no_grad()
def outputs_of(model: nn.Module, batches: Sequence[Any], call: Callable[[nn.Module, Any], Any]) -> list[list[Tensor]]:
    """Return the output tensors of every batch.

    Raises:
        SurgeryError: The model does not run on one.
    """
    with failures_explained():
        return [output_tensors(call(model, batch)) for batch in batches]


class Comparison:
    """Holds outputs of a model against those of the dense one (`comparable.ComparableOutputs` says which).

    Args:
        dense: It is run once, as it is then.
        batches: What both are run on.
        call: Runs a model on a batch.

    Raises:
        SurgeryError: The model does not run on one.
    """

    def __init__(self, dense: nn.Module, batches: Sequence[Any], call: Callable[[nn.Module, Any], Any]) -> None:
        self._batches, self._call = batches, call
        with failures_explained():
            self._compared = ComparableOutputs.of(dense, batches[0], call)
        self._expected = self._read(dense)

    def of(self, model: nn.Module) -> float:
        """Return the divergence of a model from the dense one."""
        return divergence(self._expected, self._read(model))

    @torch.no_grad()
    def _read(self, model: nn.Module) -> list[list[Tensor]]:
        with failures_explained():
            return [self._compared.read(model, batch, self._call) for batch in self._batches]


def divergence(dense: Sequence[Sequence[Tensor]], own: Sequence[Sequence[Tensor]]) -> float:
    """Return how far outputs are apart.

    One tensor (B, classes) for each batch is read as logits: the mean Kullback-Leibler divergence KL(dense || own), in
    nats. Anything else is compared by its squared error over the squares of the dense outputs, averaged over tensors.
    Tensors of different shapes count as an error of 1.

    Args:
        dense: For each batch, the output tensors of the dense model.
        own: The same of the compressed one.
    """
    if all(map(are_logits, dense)):
        a = torch.cat([tensors[0] for tensors in dense]).double().log_softmax(1)
        b = torch.cat([tensors[0] for tensors in own]).double().log_softmax(1)
        return float((a.exp() * (a - b)).sum(1).mean())
    errors = []
    for first, second in zip(dense, own, strict=True):
        for index, x in enumerate(first):
            y = second[index] if index < len(second) else None
            if x.numel() == 0:
                continue
            if y is None or y.shape != x.shape:
                errors.append(1.0)
                continue
            energy = float(x.double().square().sum())
            errors.append(float((x.double() - y.double()).square().sum()) / max(energy, 1e-30))
    return sum(errors) / max(len(errors), 1)
