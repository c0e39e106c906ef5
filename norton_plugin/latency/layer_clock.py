"""How long each layer takes in each size it may become, measured once per shape and interpolated between sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDLinear
from norton_plugin.deploy import compare_latency, lower_block
from norton_plugin.deploy.measured import clock
from norton_plugin.deploy.memory_format import FORMATS, laid_out, lay_out_
from norton_plugin.errors import RecipeError
from norton_plugin.latency.layers import Shape, TimedLayer, dense_layer, random_block, with_bias
from norton_plugin.latency.monotone import interpolated, spread
from norton_plugin.latency.table import LatencyTable, LayerTimes
from norton_plugin.surgery.layouts import Layout

# Sizes of each level that are measured; others lie between them.
_SIZES = 5
_ROUNDS = 7
_SECONDS = 10.0  # for one shape, after which no further round begins
_NANOSECONDS = 1e6  # in a millisecond


class LayerClock:
    """Tells how long layers take.

    Args:
        layers: By the first dotted name.
        table: What is known; what is measured is added to it.
        measures: Whether what is missing is measured; it is refused otherwise.
    """

    def __init__(self, layers: Mapping[str, TimedLayer], table: LatencyTable, *, measures: bool) -> None:
        self.table = table
        self._layers, self._measures = layers, measures
        self._scale = 1.0

    @property
    def whole(self) -> int:
        """Nanoseconds of the whole dense model."""
        return round(self.table.milliseconds * _NANOSECONDS)

    def knows(self, name: str, layout: Layout) -> bool:
        """Tell whether the table has a layer at the level of a layout."""
        layer = self._layers.get(name)
        known = [] if layer is None else [self.table.layers.get(layer.key(shape)) for shape in layer.inputs]
        return bool(known) and all(times is not None and layout.kind in times.factored for times in known)

    def settle(
        self, asked: Mapping[str, Sequence[Layout]], *, on_layer: Callable[[int, int], None] | None = None
    ) -> None:
        """Measure layers in the sizes they may become, before any of them is read.

        Where layers alone took longer than the whole model, whose outputs stay in the cache, their times are scaled
        down to it.

        Args:
            asked: By the first dotted name of each layer.
            on_layer: Told how many layers of how many are done.

        Raises:
            RecipeError: A time is missing, and nothing is measured.
        """
        for done, (name, layouts) in enumerate(asked.items(), 1):
            if name in self._layers:
                self._milliseconds(self._layers[name], [None, *layouts])
            if on_layer is not None:
                on_layer(done, len(asked))
        dense = sum(self._milliseconds(self._layers[name], [None])[0] for name in asked if name in self._layers)
        self._scale = min(1.0, self.table.milliseconds / dense) if dense else 1.0

    def nanoseconds(
        self, name: str, layouts: Sequence[Layout | None], *, filters: int | None = None, channels: int | None = None
    ) -> list[int]:
        """Return how long all calls of a layer take in each layout; 0 for a layer that cannot be timed.

        Args:
            name: Its first dotted name.
            layouts: None for the dense layer.
            filters: How many it keeps; None for all.
            channels: How many channels one filter keeps; None for all.
        """
        layer = self._layers.get(name)
        if layer is None:
            return [0] * len(layouts)
        own_filters, own_channels = layer.contract.weight.shape[:2]
        cut = layer.cut(own_filters if filters is None else filters, own_channels if channels is None else channels)
        return [round(ms * self._scale * _NANOSECONDS) for ms in self._milliseconds(cut, layouts)]

    def _milliseconds(self, layer: TimedLayer, layouts: Sequence[Layout | None]) -> list[float]:
        totals = [0.0] * len(layouts)
        for shape, calls in layer.inputs.items():
            times = self._times(layer, shape, [layout for layout in layouts if layout is not None])
            for place, layout in enumerate(layouts):
                totals[place] += calls * (times.dense if layout is None else _read(times, layout))
        return totals

    def _times(self, layer: TimedLayer, shape: Shape, layouts: Sequence[Layout]) -> LayerTimes:
        """Return what is known of a shape, after measuring what is not."""
        key = layer.key(shape)
        known = self.table.layers.get(key)
        missing = [each for each in layouts if known is None or each.kind not in known.factored]
        if known is not None and not missing:
            return known
        if not self._measures:
            what = "the layer" if known is None else f"level {missing[0].level!r} of the layer"
            raise RecipeError(
                f"the table of milliseconds lacks {what} '{key}'; give the table of this model, batch and image size, "
                "or leave it out (--latency-table, budget.table) to measure"
            )
        found = _measured(layer, shape, _anchors(missing), self.table.memory_format)
        if known is not None:
            known.factored |= found.factored
            return known
        self.table.layers[key] = found
        return found


def _read(times: LayerTimes, layout: Layout) -> float:
    """Return the milliseconds of a layout; a block that is slower than the dense layer runs as the dense one."""
    curve = times.factored[layout.kind]
    found = float(interpolated([layout.rank], list(curve), list(curve.values()))[0])
    return min(found, times.dense)


def _anchors(layouts: Iterable[Layout]) -> list[Layout]:
    """Return the sizes of each level that are measured."""
    by_level: dict[str, dict[int, Layout]] = {}
    for layout in layouts:
        by_level.setdefault(layout.kind, {})[layout.rank] = layout
    return [sizes[rank] for sizes in by_level.values() for rank in spread(sorted(sizes), _SIZES)]


def _measured(layer: TimedLayer, shape: Shape, layouts: Sequence[Layout], memory_format: str) -> LayerTimes:
    """Time the dense layer and blocks of these sizes in all their forms, each in turn."""
    memory, contract = FORMATS[memory_format], with_bias(layer.contract)
    x = laid_out(layer.example(shape), memory)
    owners: list[Layout | None] = [None]
    modules: list[nn.Module] = [dense_layer(contract)]
    for layout in layouts:
        block = random_block(contract, layout).eval()
        forms = [None] if isinstance(block, CPDLinear) else [form for form in block.forms if form != "dense"]
        modules += [lower_block(block, form).eval() for form in forms]
        owners += [layout] * len(forms)
    with torch.inference_mode():

        def call(module: nn.Module) -> Callable[[], Tensor]:
            module = lay_out_(module, memory)
            return lambda: module(x)

        calls = [call(module) for module in modules]
        calls = calls if len(calls) > 1 else calls * 2  # a comparison takes two
        seconds = compare_latency(calls, rounds=_ROUNDS, warmup=1, budget=_SECONDS, clock=clock()).seconds
    found = LayerTimes(1e3 * seconds[0])
    for owner, taken in zip(owners, seconds, strict=False):
        if owner is not None:
            curve = found.factored.setdefault(owner.kind, {})
            curve[owner.rank] = min(1e3 * taken, curve.get(owner.rank, float("inf")))
    return found
