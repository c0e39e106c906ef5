"""The phases of a compression, in the order of the paper: decompose, prune, and what follows on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from norton_plugin.calibration import CalibrationReport
from norton_plugin.cost import ModelCost, count_cost
from norton_plugin.distillation import DistillationReport
from norton_plugin.modules.running import ForwardFunction, counted_by, run_model
from norton_plugin.pipeline.calibrating import finish_, fit_, ranked_by_outputs
from norton_plugin.pipeline.checks import needs_images_to_rank
from norton_plugin.recipe import Recipe
from norton_plugin.surgery.criteria import GroupCriterion
from norton_plugin.surgery.decompose import decompose_
from norton_plugin.surgery.prune import prune_
from norton_plugin.surgery.report import DecompositionReport, PruningReport


@dataclass(frozen=True)
class Outcome:
    """What the phases did.

    Attributes:
        decomposition: Of phase one.
        pruning: Of phase two.
        fitted: What fitting the layers to images did; None where it was not asked for.
        images: Images that BatchNorm statistics were re-estimated on.
        distilled: What learning from the dense model did; None where it was not asked for.
    """

    decomposition: DecompositionReport
    pruning: PruningReport
    fitted: CalibrationReport | None
    images: int
    distilled: DistillationReport | None


@dataclass(frozen=True)
class Phases:
    """What the phases work with.

    Attributes:
        model: The dense model; it stays as it is.
        example_inputs: As the model takes them.
        cost: Of the dense model.
        calibration: Unlabelled batches, or None.
        ranking: Ranks channels in place of the recipe's criterion; None for that.
        forward_fn: In place of the plain call.
        step: Told the name of each phase as it begins.
        detail: Told how far a phase is, in words; None for nobody.
    """

    model: nn.Module
    example_inputs: Any
    cost: ModelCost
    calibration: Iterable[Any] | None
    ranking: GroupCriterion | None
    forward_fn: ForwardFunction | None
    step: Callable[[str], None]
    detail: Callable[[str], None] | None = None

    def cost_of(self, model: nn.Module) -> ModelCost:
        """Return the cost of a model that came of the dense one, counted as that one's."""
        return count_cost(model, partial(run_model, model, self.example_inputs, counted_by(self.forward_fn)))

    def run_(self, compressed: nn.Module, recipe: Recipe, *, ignored: Sequence[nn.Module]) -> Outcome:
        """Run them on a copy of the dense model, in place.

        Args:
            compressed: The copy.
            recipe: What to do; a budget in it has become sizes.
            ignored: Modules of the copy whose outputs must keep their width.

        Returns:
            What they did; nothing follows on images where nothing was changed.

        Raises:
            SurgeryError: A phase failed.
        """
        decomposition, pruning = DecompositionReport((), ()), PruningReport((), ())
        settings: dict[str, Any] = {"scope": recipe.scope, "verify": recipe.verify, "require": False}
        if recipe.decomposition.active:
            self.step("decompose")
            further: dict[str, Any] = {"map_sizes": self.cost.map_sizes, "on_detail": self.detail}
            decomposition = decompose_(compressed, recipe.decomposition, **settings, **further)
        if recipe.pruning.active:
            ranking = self._ranking(recipe)
            self.step("prune")
            settings |= {"ignored": ignored, "forward_fn": self.forward_fn, "time_limit": recipe.time_limit}
            pruning = prune_(compressed, self.example_inputs, recipe.pruning, criterion=ranking, **settings)
            del ranking  # with the moments that it holds
        fitted: CalibrationReport | None = None
        if not (decomposition.layers or pruning.groups):
            return Outcome(decomposition, pruning, fitted, 0, None)
        on_images: dict[str, Any] = {"recipe": recipe, "forward_fn": self.forward_fn, "on_detail": self.detail}
        if recipe.calibration.fit and self.calibration is not None:
            self.step("fit")
            inputs = self.example_inputs, self.calibration
            fitted = fit_(self.model, compressed, *inputs, removed=pruning.removed, **on_images)
        images, distilled = finish_(
            self.model, compressed, self.calibration, norms=fitted is None, step=self.step, **on_images
        )
        return Outcome(decomposition, pruning, fitted, images, distilled)

    def _ranking(self, recipe: Recipe) -> GroupCriterion | None:
        if self.calibration is None or not needs_images_to_rank(recipe, self.ranking):
            return self.ranking
        self.step("rank")
        inputs = self.example_inputs, self.calibration
        memory = recipe.calibration.memory_bytes
        return ranked_by_outputs(self.model, *inputs, recipe, self.forward_fn, memory=memory)
