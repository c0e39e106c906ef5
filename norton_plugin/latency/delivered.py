"""Whole models as they are delivered, timed beside the dense one: lowered in their fastest forms, norms folded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from norton_plugin.deploy import compare_latency, prepare
from norton_plugin.deploy.measured import clock
from norton_plugin.modules.running import ForwardFunction, run_model

_ROUNDS = 25
# Of each memory format, or each form: the dense model's decides what all others are held against.
_DENSE_ROUNDS, _FORM_ROUNDS = 9, 3
_SECONDS = 20.0  # for one comparison, after which no further round begins


@dataclass(frozen=True)
class Timing:
    """Medians of two models that were timed in turn.

    Attributes:
        dense: Milliseconds of the dense model.
        compressed: Milliseconds of the other one.
    """

    dense: float
    compressed: float

    @property
    def share(self) -> float:
        """The compressed model's time as a share of the dense one's."""
        return self.compressed / self.dense


class DeliveredModels:
    """Times models beside one dense model.

    Args:
        dense: Left as it is; its norms are folded, and it runs in its faster memory format.
        example_inputs: What it is timed on: the batch counts.
        forward_fn: In place of the plain call.

    Attributes:
        memory_format: Of the dense model.
        machine: What times depend on.
        milliseconds: Of the dense model.
    """

    def __init__(self, dense: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None) -> None:
        self._example, self._forward = example_inputs, forward_fn
        prepared = prepare(dense, example_inputs, forms="measured", rounds=_DENSE_ROUNDS, forward_fn=forward_fn)
        self._dense = prepared.model
        self.memory_format, self.machine = prepared.deployment.memory_format, prepared.deployment.machine
        self.milliseconds = self._timed(prepared.model).dense

    def beside_dense(self, model: nn.Module) -> Timing:
        """Time a compressed model; it is left as it is.

        Raises:
            SurgeryError: It does not run on the example.
        """
        found = prepare(model, self._example, forms="measured", rounds=_FORM_ROUNDS, forward_fn=self._forward)
        return self._timed(found.model)

    def _timed(self, model: nn.Module) -> Timing:
        calls = [partial(run_model, each, self._example, self._forward) for each in (self._dense, model)]
        with torch.inference_mode():
            seconds = compare_latency(calls, rounds=_ROUNDS, warmup=2, budget=_SECONDS, clock=clock()).seconds
        return Timing(1e3 * seconds[0], 1e3 * seconds[1])
