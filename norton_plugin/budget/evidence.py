"""What errors of layers cost: from a record where it is known, measured on images where it is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from norton_plugin.budget.cut_costs import NOTHING, cut_target
from norton_plugin.budget.distortion import added_error, weight_errors
from norton_plugin.budget.measured import MeasuredDivergence
from norton_plugin.budget.menu import layouts_of
from norton_plugin.budget.record import SensitivityRecord
from norton_plugin.budget.sensitivity import LayerSensitivity, layer_sensitivities, sensitivity_bytes
from norton_plugin.budget.solve import Values
from norton_plugin.calibration.memory import MomentMemory, in_passes
from norton_plugin.surgery.layouts import Layout
from norton_plugin.surgery.removed import RemovedChannels
from norton_plugin.surgery.targets import Target

# Share of a layer's output that is left out to measure what its errors cost the model.
_PROBE = 0.1


class Evidence:
    """Errors of the layers of one model on some images; what is measured is added to the record.

    Args:
        model: Run where something is missing; left as it is.
        targets: Its layers that may be decomposed.
        batches: Unlabelled images.
        call: Runs the model on a batch.
        seed: As of ``layer_sensitivities``.
        record: What is known.
        memory: Bounds what is held of the moments: where they do not fit together, layers are measured in several
            passes over the images.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        batches: Sequence[Any],
        *,
        call: Callable[[nn.Module, Any], Any],
        seed: int,
        record: SensitivityRecord,
        memory: MomentMemory | None = None,
    ) -> None:
        self.record = record
        self._model, self._batches, self._call, self._seed = model, batches, call, seed
        self.targets = {target.names[0]: target for target in targets}
        self._memory = memory or MomentMemory()
        needs = {name: sensitivity_bytes(target) for name, target in self.targets.items()}
        self._passes = in_passes(needs, self._memory)
        self._held: dict[str, LayerSensitivity] = {}

    @property
    def reached(self) -> bool:
        """Whether images and gradients reach all layers; there is nothing to be told otherwise."""
        if self.record.reached and any(name not in self.record.lost for name in self.targets):
            self.record.reached = all(self._told(names) for names in self._passes)
        return self.record.reached

    def _told(self, names: Sequence[str]) -> bool:
        """Write down what the layers of a pass lose while they are held; tell whether they are reached."""
        reached = self._measured(names[0])
        for name in names if reached else ():
            self.lost(name, layouts_of(self.targets[name]))
        return reached

    def _measured(self, name: str) -> bool:
        """Measure a layer and those of its pass, in place of those of another pass; tell whether they are reached."""
        if name not in self._held:
            self._held = {}  # before others take its place
            names = next(names for names in self._passes if name in names)
            settings: dict[str, Any] = {"call": self._call, "seed": self._seed, "memory": self._memory}
            own = [self.targets[each] for each in names]
            found = layer_sensitivities(self._model, own, self._batches, **settings)
            self._held = {} if found is None else dict(zip(names, found, strict=True))
        return name in self._held

    def _of(self, name: str) -> LayerSensitivity:
        if not self._measured(name):
            raise LookupError(f"images or gradients do not reach {name}")
        return self._held[name]

    def lost(self, name: str, layouts: Sequence[Layout], removed: RemovedChannels = NOTHING) -> Values:
        """Return the share of a layer's output that is lost in each layout, as foretold.

        Args:
            name: Its first dotted name.
            layouts: Its sizes.
            removed: Channels that it lost.
        """
        target = self.targets[name]

        def measure() -> Values:
            outputs = removed.kept_outputs(target.shape.filters) if removed.outputs else None
            inputs = removed.kept_inputs(target.shape.channels) if removed.inputs else None
            return weight_errors(cut_target(target, removed), layouts, self._of(name).seen(outputs, inputs))

        return self.record.lost_shares(_key(name, removed), layouts, measure)

    def divergence(self, name: str, measured: Callable[[], MeasuredDivergence]) -> float:
        """Return the divergence of the model's outputs that a unit of a layer's error makes.

        Args:
            name: Its first dotted name.
            measured: Returns what tells the cost of a change, where it is not known.
        """
        if name not in self.record.divergences:
            self.record.divergences[name] = self._probed(name, measured())
        return self.record.divergences[name]

    def _probed(self, name: str, measured: MeasuredDivergence) -> float:
        """Measure one error of a layer."""
        weight, lost = self._of(name).projected(_PROBE)
        if not lost or not measured.settable(name):
            return 1.0
        shift = measured.moments.shift(name, weight)
        return max(measured.of({name: (weight, shift)}), 1e-9) / float(added_error(np.array(lost)))


def _key(name: str, removed: RemovedChannels) -> str:
    if not (removed.outputs or removed.inputs):
        return name
    told = f"{removed.outputs} {removed.inputs}".encode()
    return f"{name} {hashlib.sha256(told).hexdigest()[:16]}"
