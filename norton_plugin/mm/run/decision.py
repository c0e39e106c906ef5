"""What becomes of the model: decided on the first rank, and shared with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.dist import broadcast_object_list, is_distributed
from mmengine.runner import Runner
from torch import Tensor

from norton_plugin.errors import NortonError, SurgeryError
from norton_plugin.mm.run.compression import compressed_copy, frozen_layers, without
from norton_plugin.mm.run.left import with_frozen_named
from norton_plugin.mm.run.shown import shown_images
from norton_plugin.mm.run.tracing import example_image
from norton_plugin.mm.runner.migration import unwrap
from norton_plugin.pipeline import CompressionReport, StepLog
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
    named: frozenset[str] = frozenset(),
    log: StepLog | None = None,
) -> Decision:
    """Compress a copy of the model on the first rank, and give every rank its structure.

    Where the recipe has a budget, fits layers or learns from the dense model, training images are shown to the copy.

    Args:
        runner: Its model is not changed.
        recipe: What to do.
        frozen: Also change layers that need no gradient.
        input_size: (H, W) in pixels of the image to trace; None for that of the training data.
        outputs: Layers whose outputs keep their width.
        named: Settings of the recipe's calibration that hold as they are.
        log: Told each step as it begins, and how far it is, on the first rank.

    Raises:
        NortonError: The compression failed; on every rank alike.
    """
    decision: Decision | None = None
    shared: list[Any] = [None]
    if runner.rank == 0:
        try:
            settings: dict[str, Any] = {"frozen": frozen, "input_size": input_size, "outputs": outputs, "named": named}
            decision = _compress(runner, recipe, log=log, **settings)
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
    named: frozenset[str],
    log: StepLog | None,
) -> Decision:
    model = unwrap(runner.model)
    example = example_image(runner, model, input_size)
    left = () if frozen else frozen_layers(model)
    wanted, images = without(recipe, left), None
    if recipe.budget.given or recipe.calibration.fit or recipe.distillation.active:
        wanted, images = shown_images(runner, model, wanted, named=named, log=log)
    compressed, report, traced = compressed_copy(
        model, example, wanted, logger=runner.logger, outputs=outputs, images=images, log=log
    )
    report = with_frozen_named(report, [name for name in left if recipe.scope.admits(name)])
    return Decision(report.structure, dict(compressed.state_dict()), report, traced)
