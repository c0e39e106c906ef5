"""From the budget of a recipe to sizes of layers: what is known before, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.budget import BudgetPlan, LatencyBudget, SensitivityRecord, new_record, plan_budget, read_record
from norton_plugin.calibration import OutputCriterion, take_batches
from norton_plugin.calibration.batches import batch_size
from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import calibrated_by, run_model
from norton_plugin.pipeline.phases import Phases
from norton_plugin.recipe import Recipe

# Most images that errors are weighed on for a budget: more change little.
IMAGES = 512


@dataclass(frozen=True)
class Known:
    """What a budget is met by.

    Attributes:
        latency: Tells milliseconds; None where no budget names any.
        batches: Images that errors are measured on; None for none.
        record: What was measured on them; None without images.
        told: Whether measurements of before are taken, and why not, in words; empty where none were named.
    """

    latency: LatencyBudget | None = None
    batches: list[Any] | None = None
    record: SensitivityRecord | None = None
    told: str = ""

    def finished(self, plan: BudgetPlan | None, compressed: nn.Module) -> BudgetPlan | None:
        """Return the plan with the measured time of the model that came of it, and with what is to be told."""
        if plan is None:
            return None
        plan = plan if self.latency is None else self.latency.confirmed(plan, compressed)
        return replace(plan, sensitivities=self.told)


def what_is_known(phases: Phases, recipe: Recipe, *, ignored: Sequence[nn.Module]) -> Known:
    """Return what the budget of a recipe is met by; the dense model is timed here.

    Args:
        phases: What they work with.
        recipe: May have a budget; the measurements that it names are read.
        ignored: Modules of the dense model whose outputs must keep their width.

    Raises:
        RecipeError: A file that the budget names cannot be read.
    """
    if not recipe.budget.given:
        return Known()
    before = None if recipe.budget.reuse is None else read_record(recipe.budget.reuse)
    latency = batches = record = None
    told = ""
    if phases.calibration is not None:
        batches = take_batches(phases.calibration, min(IMAGES, recipe.calibration.images))
        names = [name for name, module in phases.model.named_modules() if any(module is other for other in ignored)]
        record = new_record(phases.model, batches, recipe, names)
    if before is not None:
        reason = _why_not(record, before, phases)
        told = f"sensitivities taken from {recipe.budget.reuse}"
        if reason is None:
            record = before
        else:
            told = f"sensitivities measured; those in {recipe.budget.reuse} are not used, since {reason}"
    if recipe.budget.latency is not None:
        phases.step("time")
        inputs = {"example_inputs": phases.example_inputs, "forward_fn": phases.forward_fn, "ignored": ignored}
        latency = LatencyBudget(phases.model, recipe, phases.cost, on_detail=phases.detail, **inputs)
    return Known(latency, batches, record, told)


def _why_not(record: SensitivityRecord | None, before: SensitivityRecord, phases: Phases) -> str | None:
    if record is None:
        return "there are no images (--data)"
    if phases.ranking is not None:
        return "channels are ranked by a criterion of your own"
    return record.difference(before)


def within_budget(phases: Phases, model: nn.Module, recipe: Recipe, known: Known) -> tuple[Recipe, BudgetPlan | None]:
    """Return the recipe with sizes in place of its budget, and how they were found; as it is where it has none.

    Args:
        phases: What they work with.
        model: A copy of the dense model; left as it is.
        recipe: May have a budget, which does not prune.
        known: As of ``what_is_known``.
    """
    if not recipe.budget.given:
        return recipe, None
    phases.step("budget")
    call = telling_images(partial(run_model, forward_fn=calibrated_by(phases.forward_fn)), phases.detail)
    facts: dict[str, Any] = {"batches": known.batches, "latency": known.latency, "record": known.record}
    plan = plan_budget(model, recipe, phases.cost, call=call, **facts)
    return plan.recipe(recipe), plan


def telling_images(
    call: Callable[[nn.Module, Any], Any], detail: Callable[[str], None] | None
) -> Callable[[nn.Module, Any], Any]:
    """Return what runs a model on a batch as ``call`` does, and tells on how many images that was done so far.

    Args:
        call: ``(model, batch)``.
        detail: Told, in words; None for nobody.
    """
    if detail is None:
        return call
    images = 0

    def told(model: nn.Module, batch: Any) -> Any:
        nonlocal images
        result = call(model, batch)
        images += batch_size(batch)
        detail(f"{images} images run")
        return result

    return told


class RecordedRanking:
    """The criterion "output", whose scores are written down; images are run only for scores that are not known.

    Args:
        record: Of the scores.
        make: Returns the criterion.
    """

    def __init__(self, record: SensitivityRecord, make: Callable[[], OutputCriterion]) -> None:
        self._record, self._make = record, make

    @cached_property
    def criterion(self) -> OutputCriterion:
        """The criterion itself, with what it collected."""
        return self._make()

    def release(self) -> None:
        """Let go of what the criterion collected."""
        self.__dict__.pop("criterion", None)

    def __call__(self, group: ChannelGroup) -> Tensor:
        """Return one score per root channel, (size,).

        Raises:
            SurgeryError: Nothing that the images reach reads the channels.
        """
        known = self._record.scores.get(group.root)
        if known is None or (known and len(known) != group.size):
            try:
                known = self.criterion(group).tolist()
            except SurgeryError:
                self._record.scores[group.root] = []
                raise
            self._record.scores[group.root] = known
        if not known:
            raise SurgeryError("no convolution and no Linear layer that the images reach reads these channels")
        return torch.tensor(known, dtype=torch.float64)
