"""What becomes of the model: decided on the first rank, and shared with the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.dist import broadcast_object_list, is_distributed
from mmengine.runner import Runner
from torch import Tensor

from norton_plugin.errors import NortonError, SurgeryError
from norton_plugin.mm.run.compression import compressed_copy, frozen_layers, without
from norton_plugin.mm.run.left import with_frozen_named
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
    on_step: Callable[[str], None] | None = None,
) -> Decision:
    """Compress a copy of the model on the first rank, and give every rank its structure.

    Args:
        runner: Its model is not changed.
        recipe: What to do.
        frozen: Also change layers that need no gradient.
        input_size: (H, W) in pixels of the image to trace; None for that of the training data.
        outputs: Layers whose outputs keep their width.
        on_step: Told the name of each step as it begins, on the first rank.

    Raises:
        NortonError: The compression failed; on every rank alike.
    """
    decision: Decision | None = None
    shared: list[Any] = [None]
    if runner.rank == 0:
        try:
            settings: dict[str, Any] = {"frozen": frozen, "input_size": input_size, "outputs": outputs}
            decision = _compress(runner, recipe, on_step=on_step, **settings)
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
    runner: Runner,
    recipe: Recipe,
    *,
    frozen: bool,
    input_size: Sequence[int] | None,
    outputs: Sequence[str],
    on_step: Callable[[str], None] | None,
) -> Decision:
    model = unwrap(runner.model)
    example = example_image(runner, model, input_size)
    left = () if frozen else frozen_layers(model)
    compressed, report, traced = compressed_copy(
        model, example, without(recipe, left), logger=runner.logger, outputs=outputs, on_step=on_step
    )
    report = with_frozen_named(report, [name for name in left if recipe.scope.admits(name)])
    return Decision(report.structure, dict(compressed.state_dict()), report, traced)
