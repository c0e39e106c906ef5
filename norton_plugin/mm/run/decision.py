"""What becomes of the model: decided on the first rank, and shared with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.dist import broadcast_object_list, is_distributed
from mmengine.runner import Runner
from torch import Tensor

from norton_plugin.errors import NortonError, SurgeryError
from norton_plugin.mm.run.compression import compressed_copy, without_frozen
from norton_plugin.mm.run.tracing import example_image
from norton_plugin.mm.runner.migration import unwrap
from norton_plugin.pipeline import CompressionReport
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.structure import Structure


@dataclass(frozen=True)
class Decision:
    """The compressed model, before any rank's own model is changed.

    Attributes:
        structure: What leads to it from the dense model; alike on every rank.
        state: Its state dict; empty on all ranks but the first.
        report: Of ``compress``; None on all ranks but the first.
        traced: What was traced, in words; empty on all ranks but the first.
    """

    structure: Structure
    state: dict[str, Tensor] = field(default_factory=dict)
    report: CompressionReport | None = None
    traced: str = ""


def decide(
    runner: Runner,
    recipe: Recipe,
    *,
    frozen: bool,
    input_size: Sequence[int] | None,
    outputs: Sequence[str] = (),
) -> Decision:
    """Compress a copy of the model on the first rank, and give every rank its structure.

    Args:
        runner: Its model is not changed.
        recipe: What to do.
        frozen: Also change layers that need no gradient.
        input_size: (H, W) in pixels of the image to trace; None for that of the training data.
        outputs: Layers whose outputs keep their width.

    Raises:
        NortonError: The compression failed; on every rank alike.
    """
    decision: Decision | None = None
    shared: list[Any] = [None]
    if runner.rank == 0:
        try:
            decision = _compress(runner, recipe, frozen=frozen, input_size=input_size, outputs=outputs)
            shared = [decision.structure]
        except Exception as error:
            if not is_distributed():
                raise
            # The other ranks wait for an answer, and have to fail as well.
            known = isinstance(error, NortonError)
            shared = [error if known else SurgeryError(f"the first rank failed: {type(error).__name__}: {error}")]
    if is_distributed():
        broadcast_object_list(shared)
    if isinstance(shared[0], NortonError):
        raise shared[0]
    return decision or Decision(shared[0])


def _compress(
    runner: Runner, recipe: Recipe, *, frozen: bool, input_size: Sequence[int] | None, outputs: Sequence[str]
) -> Decision:
    model = unwrap(runner.model)
    example = example_image(runner, model, input_size)
    compressed, report, traced = compressed_copy(
        model, example, recipe if frozen else without_frozen(recipe, model), logger=runner.logger, outputs=outputs
    )
    return Decision(report.structure, dict(compressed.state_dict()), report, traced)
