"""The sequential pass: layer after layer is fitted to what it sees behind the layers that were changed before it.

Two streams of activations run side by side, dense and compressed (docs/method.md, section 3D). The inputs of a layer
are those of the compressed model; its target is what the dense layer gives and, where that is added to a stream, minus
the error that the stream already carries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.fitting import LayerFit, fit_layer_, takes_bias
from norton_plugin.calibration.layers import FittedLayer
from norton_plugin.calibration.lockstep import PausableRun, started, watched
from norton_plugin.calibration.moments import MomentSums
from norton_plugin.calibration.places import LayerPlace
from norton_plugin.errors import SurgeryError

Call = Callable[[nn.Module, Any], Any]
Pair = tuple[PausableRun, PausableRun]
_NO_STREAM = "its output is added to no stream that is there before it is called"
_OTHER_OPERATIONS = "the operations of a calibration batch are not those of the example"
_OTHER_SIZES = "the stream that its output is added to is computed for images of the example's size"
_CHOSEN = "values decide what it reads, which may differ in the two models"
_SHARED = "it is called {calls} times"
_UNEQUAL = "it reads different sizes in the two models"


class SequentialPass:
    """One sequential pass.

    Args:
        dense: The dense model, in evaluation mode.
        compressed: Fitted in place.
        batches: Calibration batches; all are held, with what the passes of both models need to go on.
        call: Runs a model on a batch.
        positions: Output positions read of every image.
        seed: Of the positions.
    """

    def __init__(
        self, dense: nn.Module, compressed: nn.Module, batches: Sequence[Any], *, call: Call, positions: int, seed: int
    ) -> None:
        self.dense, self.compressed = dense, compressed
        self.batches, self.call = batches, call
        self.positions = positions
        self.generator = torch.Generator().manual_seed(seed)
        self._names = {module: name for name, module in dense.named_modules()}
        self._norms = dict(compressed.named_modules())

    def run_(
        self,
        layers: Sequence[FittedLayer],
        places: Sequence[LayerPlace],
        *,
        on_layer: Callable[[int, int], None] | None = None,
    ) -> tuple[list[LayerFit], dict[str, str]]:
        """Fit layers in the order of their calls.

        Args:
            layers: What may be fitted.
            places: Where the dense layers stand in a run.
            on_layer: Told how many layers of how many are done.

        Returns:
            What was done, and why layers were left as they are, by name.
        """
        by_module = {layer.dense: layer for layer in layers}
        left = {layer.name: "the example does not run it" for layer in layers}
        last_use = {source[0]: i for i, place in enumerate(places) if place.other for source in place.other.sources}
        fits: list[LayerFit] = []
        own = {layer.name: layer.own for layer in layers}
        with watched([*by_module, *own.values()]):
            dense_runs = [partial(self.call, self.dense, batch) for batch in self.batches]
            own_runs = [partial(self.call, self.compressed, batch) for batch in self.batches]
            with started(dense_runs, wanted=last_use) as first, started(own_runs, wanted=last_use) as second:
                for index, place in enumerate(places):
                    layer = by_module[place.module]
                    outcome = self._fit(layer, place, list(zip(first, second, strict=True)))
                    left.pop(layer.name)
                    if isinstance(outcome, LayerFit):
                        fits.append(outcome)
                    else:
                        left[layer.name] = outcome
                    for run in (*first, *second):
                        for key in [key for key in run.counter.kept if last_use[key] <= index]:
                            del run.counter.kept[key]
                    if on_layer is not None:
                        on_layer(index + 1, len(places))
        return fits, left

    def _fit(self, layer: FittedLayer, place: LayerPlace, pairs: list[Pair]) -> LayerFit | str:
        """Fit one layer, or say why it stays."""
        arrived = [(a, b) for a, b in pairs if a.until(layer.dense, "after") & b.until(layer.own, "before")]
        arrived = [(a, b) for a, b in arrived if a.inputs and b.inputs and isinstance(a.output, Tensor)]
        if not arrived:
            return "no calibration image reaches it"
        sums = MomentSums(layer.name, layer.geometry, positions=self.positions)
        target, note, nowhere = "output", "", _NO_STREAM
        if place.other and not all(place.other.fits(run.counter.kept) for pair in arrived for run in pair):
            place, nowhere = replace(place, other=None), _OTHER_OPERATIONS
        elif place.other and not all(_reaches(place, a) for a, _ in arrived):
            place, nowhere = replace(place, other=None), _OTHER_SIZES
        if place.calls > 1:
            note = _SHARED.format(calls=place.calls)
            self._add_all_calls(layer, sums)
        elif place.chosen or any(a.inputs[0].shape != b.inputs[0].shape for a, b in arrived):
            target, note = "symmetric", _CHOSEN if place.chosen else _UNEQUAL
            for a, _ in arrived:
                sums.add(a.inputs[0], a.output, self.generator)
        else:
            target, note = ("stream", "") if place.other else ("output", nowhere)
            if not layer.decomposed and all(_same(place, a, b) for a, b in arrived):
                return "it sees what it sees in the dense model"
            for a, b in arrived:
                sums.add(b.inputs[0], a.output + _correction(place, a, b), self.generator)
        norm = self._norms.get(self._names[place.norm]) if place.norm is not None else None
        moments = sums.result(centred=takes_bias(layer.own, norm))
        if not layer.decomposed and moments.samples < layer.weight.shape[1]:
            return f"{moments.samples} samples are too few for {layer.weight.shape[1]} inputs"
        before, after = fit_layer_(layer, moments, scale=place.channel_scale, norm=norm)
        sizes = {"inputs": layer.weight.shape[1], "samples": moments.samples}
        return LayerFit(layer.name, layer.decomposed, target, note, **sizes, nmse_before=before, nmse_after=after)

    def _add_all_calls(self, layer: FittedLayer, sums: MomentSums) -> None:
        """Add the calls of a shared layer, from further passes of both models."""
        for batch in self.batches:
            calls: list[list[tuple[Tensor, Tensor]]] = []
            for model, module in ((self.dense, layer.dense), (self.compressed, layer.own)):
                seen: list[tuple[Tensor, Tensor]] = []
                handle = module.register_forward_hook(lambda _, args, output, seen=seen: seen.append((args[0], output)))
                try:
                    with torch.no_grad():
                        self.call(model, batch)
                finally:
                    handle.remove()
                calls.append(seen)
            if [x.shape for x, _ in calls[0]] != [x.shape for x, _ in calls[1]]:
                calls[1] = calls[0]
            for (_, output), (x, _) in zip(*calls, strict=True):
                sums.add(x, output, self.generator)


def _reaches(place: LayerPlace, run: PausableRun) -> bool:
    """Tell whether what a layer's output is added to can be computed again for the images of a run."""
    if place.other is None:
        return False
    try:
        found = place.other.compute(run.counter.kept)
        reached: bool = place.correction(found, found).shape == run.output.shape
    except RuntimeError:  # a shape of the example that does not fit
        return False
    return reached


def _correction(place: LayerPlace, dense: PausableRun, own: PausableRun) -> Tensor | float:
    """Return what the layer has to add to repair its stream."""
    if place.other is None:
        return 0.0
    first, second = place.other.compute(dense.counter.kept), place.other.compute(own.counter.kept)
    if first.shape != second.shape:
        raise SurgeryError("the two models give streams of different shapes; they are not versions of one model")
    return place.correction(first, second).to(dense.output)


def _same(place: LayerPlace, dense: PausableRun, own: PausableRun) -> bool:
    correction = _correction(place, dense, own)
    same = not isinstance(correction, Tensor) or not bool(correction.any())
    return same and torch.equal(dense.inputs[0], own.inputs[0])
