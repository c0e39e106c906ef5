"""The sequential pass: layer after layer is fitted to what it sees behind the layers that were changed before it.

Two streams of activations run side by side, dense and compressed (docs/method.md, section 3). The inputs of a layer
are those of the compressed model; its target is what the dense layer gives and, where that is added to a stream, minus
the error that the stream already carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.calibration.batches import batch_size
from norton_plugin.calibration.fitting import LayerFit, fit_layer_, takes_bias
from norton_plugin.calibration.halved_moments import HalvedSums
from norton_plugin.calibration.held_tensors import HeldMemory, tensors_of
from norton_plugin.calibration.layers import FittedLayer
from norton_plugin.calibration.lockstep import PausableRun, started, watched
from norton_plugin.calibration.memory import MomentMemory, fitting_bytes
from norton_plugin.calibration.moments import LayerMoments
from norton_plugin.calibration.places import LayerPlace
from norton_plugin.calibration.positions import positions_of_layer
from norton_plugin.calibration.ridge import ridge_of
from norton_plugin.errors import SurgeryError

Call = Callable[[nn.Module, Any], Any]
Pair = tuple[PausableRun, PausableRun]
_NO_STREAM = "its output is added to no stream that is there before it is called"
_OTHER_OPERATIONS = "the operations of a calibration batch are not those of the example"
_OTHER_SIZES = "the stream that its output is added to is computed for images of the example's size"
_CHOSEN = "values decide what it reads, which may differ in the two models"
_SHARED = "it is called {calls} times"
_UNREACHED = "no calibration image reaches it"
_UNEQUAL = "it reads different sizes in the two models"


@dataclass(frozen=True)
class _Pairing:
    """A layer, and where it stands in the two models.

    Attributes:
        layer: The layer.
        place: In the dense model.
        own: In the compressed model, where channels may be fewer; None where its example run does not reach it.
    """

    layer: FittedLayer
    place: LayerPlace
    own: LayerPlace | None

    @property
    def has_stream(self) -> bool:
        """Whether both models add the layer's output to a stream that is there before it."""
        return self.place.other is not None and self.own is not None and self.own.other is not None

    def without_stream(self) -> _Pairing:
        """Return the same for a layer whose output stands for itself."""
        return replace(self, place=replace(self.place, other=None))

    def fits(self, dense: PausableRun, own: PausableRun) -> bool:
        """Tell whether two runs kept what the streams are computed from."""
        return all(
            place is None or place.other is None or place.other.fits(run.counter.kept)
            for place, run in ((self.place, dense), (self.own, own))
        )

    def reaches(self, dense: PausableRun) -> bool:
        """Tell whether what a layer's output is added to can be computed again for the images of a run."""
        if self.place.other is None:
            return False
        try:
            found = self.place.other.compute(dense.counter.kept)
            reached: bool = self.place.correction(found, found).shape == dense.output.shape
        except RuntimeError:  # a shape of the example that does not fit
            return False
        return reached

    def correction(self, dense: PausableRun, own: PausableRun) -> Tensor | float:
        """Return what the layer has to add to the dense layer's output to repair its stream."""
        if self.place.other is None or self.own is None or self.own.other is None:
            return 0.0
        first, second = self.place.other.compute(dense.counter.kept), self.own.other.compute(own.counter.kept)
        if self.layer.outputs is None:
            if first.shape != second.shape:
                raise SurgeryError(
                    "the two models give streams of different shapes; they are not versions of one model"
                )
            return self.place.correction(first, second).to(dense.output)
        found = self.layer.kept_outputs(self.place.undone(first)), self.own.undone(second)
        # Channels that one of the models scales by next to nothing carry no correction.
        ones = [torch.ones_like(stream[:1]) for stream in (first, second)]
        alive = (self.layer.kept_outputs(self.place.undone(ones[0])) != 0) & (self.own.undone(ones[1]) != 0)
        return ((found[0] - found[1]) * alive).to(dense.output)


class SequentialPass:
    """One sequential pass.

    Args:
        dense: The dense model, in evaluation mode.
        compressed: Fitted in place.
        batches: Calibration batches; all are held.
        call: Runs a model on a batch.
        positions: Output positions read of every image, or ``"auto"`` (`positions.positions_of_layer`).
        seed: Of the positions.
        memory: Most bytes that the moments of a layer, what is computed of them, and what the passes of both models
            hold to go on may take together; the rest of the latter lies on disk. None for no limit of the former, and
            half of what is available for the latter.
    """

    def __init__(
        self,
        dense: nn.Module,
        compressed: nn.Module,
        batches: Sequence[Any],
        *,
        call: Call,
        positions: int | str,
        seed: int,
        memory: int | None = None,
    ) -> None:
        self._limit, self._memory = memory, MomentMemory(memory)
        self.dense, self.compressed = dense, compressed
        self.batches, self.call = batches, call
        self.positions, self.images = positions, sum(map(batch_size, batches))
        self.generator = torch.Generator().manual_seed(seed)
        self._names = {module: name for name, module in dense.named_modules()}
        self._norms = dict(compressed.named_modules())

    def run_(
        self,
        layers: Sequence[FittedLayer],
        places: Sequence[LayerPlace],
        own_places: Sequence[LayerPlace],
        *,
        on_layer: Callable[[int, int], None] | None = None,
    ) -> tuple[list[LayerFit], dict[str, str]]:
        """Fit layers in the order of their calls.

        Args:
            layers: What may be fitted.
            places: Where the dense layers stand in a run.
            own_places: Where the layers of the compressed model stand in one.
            on_layer: Told how many layers of how many are done.

        Returns:
            What was done, and why layers were left as they are, by name.

        Raises:
            RecipeError: The memory does not suffice; the least that would do is said.
        """
        needs = {layer.name: fitting_bytes(layer.weight, layer.geometry) for layer in layers}
        self._memory, others = MomentMemory.beside_others(self._limit, needs)
        held = HeldMemory(others, given=tensors_of(self.dense, self.compressed, self.batches))
        by_module = {layer.dense: layer for layer in layers}
        standing = {place.module: place for place in own_places}
        pairings = [_Pairing(by_module[p.module], p, standing.get(by_module[p.module].own)) for p in places]
        left = {layer.name: "the example does not run it" for layer in layers}
        last_uses = _last_uses(p.place for p in pairings), _last_uses(p.own for p in pairings)
        fits: list[LayerFit] = []
        with watched([*by_module, *(layer.own for layer in layers)]):
            dense_runs = [partial(self.call, self.dense, batch) for batch in self.batches]
            own_runs = [partial(self.call, self.compressed, batch) for batch in self.batches]
            with (
                started(dense_runs, wanted=last_uses[0], memory=held) as first,
                started(own_runs, wanted=last_uses[1], memory=held) as second,
            ):
                for index, pairing in enumerate(pairings):
                    outcome = self._fit(pairing, list(zip(first, second, strict=True)))
                    left.pop(pairing.layer.name)
                    if isinstance(outcome, LayerFit):
                        fits.append(outcome)
                    else:
                        left[pairing.layer.name] = outcome
                    for runs, last_use in zip((first, second), last_uses, strict=True):
                        _forget(runs, last_use, index)
                    if on_layer is not None:
                        on_layer(index + 1, len(places))
        return fits, left

    def _fit(self, pairing: _Pairing, pairs: list[Pair]) -> LayerFit | str:
        """Fit one layer, or say why it stays."""
        if pairing.layer.factors is not None:
            pairing = pairing.without_stream()  # its outputs are not those of the dense layer
        layer, place = pairing.layer, pairing.place
        arrived = [(a, b) for a, b in pairs if a.until(layer.dense, "after") & b.until(layer.own, "before")]
        arrived = [(a, b) for a, b in arrived if a.inputs and b.inputs and isinstance(a.output, Tensor)]
        if not arrived:
            return _UNREACHED
        sums = self._sums_of(layer)
        target, note, nowhere = "output", "", _NO_STREAM
        if pairing.has_stream and not all(pairing.fits(*pair) for pair in arrived):
            pairing, nowhere = pairing.without_stream(), _OTHER_OPERATIONS
        elif pairing.has_stream and not all(pairing.reaches(a) for a, _ in _in_turn(arrived)):
            pairing, nowhere = pairing.without_stream(), _OTHER_SIZES
        if place.calls > 1:
            note = _SHARED.format(calls=place.calls)
            self._add_all_calls(layer, sums)
        elif place.chosen or any(_sizes(layer, a) != _sizes(layer, b) for a, b in arrived):
            target, note = "symmetric", _CHOSEN if place.chosen else _UNEQUAL
            for batch, (a, _) in enumerate(_in_turn(arrived)):
                sums.add(batch, layer.kept_inputs(a.inputs[0]), layer.target(a.output), self.generator)
        else:
            target, note = ("stream", "") if pairing.has_stream else ("output", nowhere)
            if not layer.decomposed and all(_same(pairing, a, b) for a, b in _in_turn(arrived)):
                return "it sees what it sees in the dense model"
            for batch, (a, b) in enumerate(_in_turn(arrived)):
                wanted = layer.target(a.output) + pairing.correction(a, b)
                sums.add(batch, b.inputs[0], wanted, self.generator)
        if not sums.samples:  # all its inputs are empty, as where a detector finds nothing
            return _UNREACHED
        norm = self._norms.get(self._names[place.norm]) if place.norm is not None else None
        moments, halves = _in_whole_and_halves(sums, centred=takes_bias(layer.own, norm))
        del sums  # what follows takes several times as much
        # What lost inputs errs in any case, and few samples hold it close to its old weight.
        if not layer.decomposed and layer.inputs is None and moments.samples < layer.weight.shape[1]:
            return f"{moments.samples} samples are too few for {layer.weight.shape[1]} inputs"
        scale = pairing.own.channel_scale if pairing.own is not None else None
        ridge = ridge_of(layer.weight, moments, halves)
        del halves
        errors = fit_layer_(layer, moments, ridge=ridge, scale=scale, norm=norm)
        return LayerFit(layer.name, layer.decomposed, target, note, layer.weight.shape[1], moments.samples, *errors)

    def _sums_of(self, layer: FittedLayer) -> HalvedSums:
        reading: dict[str, Any] = {"groups": layer.geometry.groups, "images": self.images, "memory": self._memory}
        positions = positions_of_layer(self.positions, layer.weight, **reading)
        return HalvedSums(layer.name, layer.geometry, positions=positions, memory=self._memory)

    def _add_all_calls(self, layer: FittedLayer, sums: HalvedSums) -> None:
        """Add the calls of a shared layer, from further passes of both models."""
        for place, batch in enumerate(self.batches):
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
            kept = [(layer.kept_inputs(x), layer.target(output)) for x, output in calls[0]]
            if [x.shape for x, _ in kept] != [x.shape for x, _ in calls[1]]:
                calls[1] = kept
            for (_, output), (x, _) in zip(kept, calls[1], strict=True):
                sums.add(place, x, output, self.generator)


def _in_turn(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yield pairs that stand still; what was read of one is let go of before the next."""
    for pair in pairs:
        yield pair
        for run in pair:
            run.rest()


def _in_whole_and_halves(sums: HalvedSums, *, centred: bool) -> tuple[LayerMoments, list[LayerMoments]]:
    return sums.whole(centred=centred), sums.halves(centred=centred)


def _sizes(layer: FittedLayer, run: PausableRun) -> list[int]:
    """Return the shape of a layer's input, its channels left out."""
    shape = list(run.inputs[0].shape)
    del shape[layer.axis]
    return shape


def _same(pairing: _Pairing, dense: PausableRun, own: PausableRun) -> bool:
    correction = pairing.correction(dense, own)
    same = not isinstance(correction, Tensor) or not bool(correction.any())
    return same and torch.equal(dense.inputs[0], own.inputs[0])


def _last_uses(places: Iterable[LayerPlace | None]) -> dict[int, int]:
    """Return of operations whose results are needed the last layer that needs them, by their places."""
    return {
        source[0]: i
        for i, place in enumerate(places)
        if place is not None and place.other
        for source in place.other.sources
    }


def _forget(runs: Sequence[PausableRun], last_use: Mapping[int, int], index: int) -> None:
    """Let go of results that no layer after this one needs."""
    for run in runs:
        for key in [key for key in run.counter.kept if last_use[key] <= index]:
            del run.counter.kept[key]
