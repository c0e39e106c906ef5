"""A prepared model beside the dense one it came from: MACs, milliseconds, and how much of the MACs became speed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.cost import count_cost
from norton_plugin.deploy.latency import compare_latency
from norton_plugin.deploy.measured import clock
from norton_plugin.deploy.preparation import PreparedModel, prepare
from norton_plugin.errors import RecipeError
from norton_plugin.modules.running import counted_by, run_model
from norton_plugin.zoo import forward_of, inference_of, rebuild

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What a compression came to.

    Attributes:
        macs_before: Of the dense model on the example.
        macs_after: Of the compressed one, blocks by their factors.
        macs_run: That the prepared model runs: more, where blocks run as dense convolutions or in other forms.
        layers: For every block: MACs of the dense layer and of the block.
        dense_milliseconds: Median of the dense model, its norms folded, in its faster memory format; None where
            nothing was measured.
        milliseconds: Median of the prepared model, measured in turns with it.
        timed: What ran, in words: inference of a detector runs up to its boxes.
    """

    macs_before: int
    macs_after: int
    macs_run: int
    layers: Mapping[str, tuple[int, int]]
    dense_milliseconds: float | None = None
    milliseconds: float | None = None
    timed: str = "the model"

    @property
    def macs_ratio(self) -> float:
        """How many times fewer MACs."""
        return self.macs_before / max(1, self.macs_after)

    @property
    def speedup(self) -> float | None:
        """How many times faster."""
        if self.dense_milliseconds is None or not self.milliseconds:
            return None
        return self.dense_milliseconds / self.milliseconds

    @property
    def efficiency(self) -> float | None:
        """Speed-up over the ratio of MACs: 1 where all that was saved became speed."""
        return None if self.speedup is None else self.speedup / self.macs_ratio

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        ratios = {name: getattr(self, name) for name in ("macs_ratio", "speedup", "efficiency")}
        return {**asdict(self), **ratios, "layers": {name: list(macs) for name, macs in self.layers.items()}}


def compare_with_dense(
    compressed: nn.Module,
    prepared: PreparedModel,
    example_inputs: Sequence[Tensor],
    spec: Mapping[str, Any],
    *,
    rounds: int,
    forward_fn: Any = None,
) -> Comparison:
    """Compare with the dense model, which is built again and gets all that the other one got but the compression.

    Args:
        compressed: What was prepared.
        prepared: What became of it.
        example_inputs: Tensors that both take.
        spec: What builds the dense model (``zoo.rebuild``); trusted.
        rounds: Timed calls of each; 0 measures nothing.
        forward_fn: Runs the compressed model in place of the plain call.

    Raises:
        RecipeError: A negative number of rounds.
    """
    if rounds < 0:
        raise RecipeError(f"rounds is {rounds}; expected at least 0")
    dense = rebuild(spec, trust_code=True).to(example_inputs[0].device)
    run_dense = forward_of(spec, dense, example_inputs)
    counted = counted_by(run_dense), counted_by(forward_fn)
    before = count_cost(dense, partial(run_model, dense, example_inputs, counted[0]))
    after = count_cost(compressed, partial(run_model, compressed, example_inputs, counted[1]))
    lowered = getattr(prepared.model, "_orig_mod", prepared.model)  # a compiled model runs past the counter
    run = count_cost(lowered, partial(run_model, lowered, example_inputs, counted[1])).macs
    names = [choice.name for choice in prepared.table]
    layers = {name: (before.layer_macs.get(name, 0), after.layer_macs.get(name, 0)) for name in names}
    if rounds == 0:
        return Comparison(before.macs, after.macs, run, layers)
    best = prepare(dense, example_inputs, forms="measured", rounds=min(rounds, 3), forward_fn=run_dense)
    timed, of_dense, of_prepared = _inference(spec, best.model, example_inputs, run_dense, forward_fn)
    calls = [
        partial(run_model, best.model, example_inputs, of_dense),
        partial(run_model, prepared.model, example_inputs, of_prepared),
    ]
    with torch.inference_mode():
        seconds = compare_latency(calls, rounds=rounds, warmup=1, budget=60.0, clock=clock()).seconds
    return Comparison(before.macs, after.macs, run, layers, 1e3 * seconds[0], 1e3 * seconds[1], timed)


def _inference(
    spec: Mapping[str, Any], dense: nn.Module, example_inputs: Sequence[Tensor], run_dense: Any, run_compressed: Any
) -> tuple[str, Any, Any]:
    """Return what is timed in words, and what runs it on either model: as much of inference as runs on the example."""
    whole = inference_of(spec, dense)
    if whole is None:
        return "the model", run_dense, run_compressed
    try:
        with torch.inference_mode():
            run_model(dense, example_inputs, whole)
    except Exception as error:  # heads that need more than images, such as text or points
        logger.warning("inference does not run on the example, so that it is timed up to the heads: %s", error)
        return "the detector up to the tensors of its heads", run_dense, run_compressed
    return "the detector up to its boxes", whole, whole
