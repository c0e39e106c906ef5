"""Speed of every layer that was changed, beside the dense layer, and why it gains no more."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.cost import count_cost
from norton_plugin.modules.running import ForwardFunction, run_model

# A layer that moves more bytes than this share of its MACs waits for memory on today's processors.
_MACS_PER_BYTE = 8.0
_GAIN, _GOOD = 1.05, 0.75


@dataclass(frozen=True)
class LayerSpeed:
    """One layer that was decomposed or pruned.

    Attributes:
        name: Dotted name.
        macs_dense: Of its calls on the example.
        macs: Likewise, compressed.
        milliseconds_dense: Median of one call on its largest input, with its norm folded where it could be.
        milliseconds: Likewise, as delivered.
        speed_up: The first over the second.
        efficiency: ``speed_up`` over the ratio of MACs.
        macs_per_byte: MACs of the delivered layer over the bytes of its weights, its input and its output.
        verdict: What the figures say, in words.
    """

    name: str
    macs_dense: int
    macs: int
    milliseconds_dense: float
    milliseconds: float
    speed_up: float
    efficiency: float
    macs_per_byte: float
    verdict: str


@dataclass(frozen=True)
class SeenLayer:
    """A layer and what it was given.

    Attributes:
        module: The layer.
        given: Its largest input.
        output: Numbers of its output there.
    """

    module: nn.Module
    given: Tensor
    output: int


def seen_layers(
    model: nn.Module, names: list[str], example_inputs: Any, forward_fn: ForwardFunction | None = None
) -> dict[str, SeenLayer]:
    """Run a model and return those of the named layers that it calls on one tensor, with the largest they got.

    Args:
        model: In evaluation mode.
        names: Dotted names.
        example_inputs: As of ``run_model``.
        forward_fn: Likewise.
    """
    found: dict[str, SeenLayer] = {}

    def remember(module: nn.Module, given: tuple[Any, ...], output: Any, *, name: str) -> None:
        if len(given) != 1 or not isinstance(given[0], Tensor) or not isinstance(output, Tensor):
            return
        if name not in found or given[0].numel() > found[name].given.numel():
            found[name] = SeenLayer(module, given[0].detach(), output.numel())

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(partial(remember, name=name)) for name in names if name in modules]
    try:
        with torch.inference_mode():
            run_model(model, example_inputs, forward_fn)
    finally:
        for handle in handles:
            handle.remove()
    return found


def layer_speed(
    name: str, dense: SeenLayer, delivered: SeenLayer, samples: Mapping[str, list[float]], macs: tuple[int, int]
) -> LayerSpeed:
    """Put the figures of one layer together.

    Args:
        name: Dotted name.
        dense: The dense layer.
        delivered: What took its place.
        samples: Seconds of ``"dense"`` and ``"delivered"``.
        macs: Of the dense and of the compressed layer.
    """
    before, after = (statistics.median(samples[key]) for key in ("dense", "delivered"))
    speed_up, ratio = before / after, macs[0] / max(macs[1], 1)
    weights = sum(parameter.numel() for parameter in delivered.module.parameters())
    moved = (weights + delivered.given.numel() + delivered.output) * delivered.given.element_size()
    intensity = count_cost(delivered.module, lambda: delivered.module(delivered.given)).macs / moved
    return LayerSpeed(
        name=name,
        macs_dense=macs[0],
        macs=macs[1],
        milliseconds_dense=1e3 * before,
        milliseconds=1e3 * after,
        speed_up=speed_up,
        efficiency=speed_up / ratio,
        macs_per_byte=intensity,
        verdict=verdict(speed_up, ratio, intensity),
    )


def verdict(speed_up: float, ratio: float, macs_per_byte: float) -> str:
    """Say in words what a layer gains, and if little, why.

    Args:
        speed_up: Time of the dense layer over that of the delivered one.
        ratio: MACs of the dense layer over those of the compressed one.
        macs_per_byte: Of the delivered layer.
    """
    if speed_up < 1 / _GAIN:
        return "slower than dense: leave it dense (exclude it), or let norton deploy measure the forms"
    if ratio < _GAIN:
        return "as many MACs as before: nothing to gain"
    if speed_up < _GAIN:
        reason = "it waits for memory" if macs_per_byte < _MACS_PER_BYTE else "its products are small"
        return f"gains nothing: {reason}; leave it dense, or compress it further"
    if speed_up / ratio >= _GOOD:
        return "fast"
    reason = "memory limits it" if macs_per_byte < _MACS_PER_BYTE else "its steps are small"
    return f"faster, but less than its MACs: {reason}"
