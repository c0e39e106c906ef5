"""How reports say what became of a layer: the same words in tables, logs and exported files."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from norton_plugin.budget import BudgetPlan, Milliseconds
from norton_plugin.calibration import CalibrationReport
from norton_plugin.distillation import DistillationReport
from norton_plugin.pipeline.report import CompressionReport, LayerReport

# Kinds of factors that tell nothing, of which the report names the most frequent.
_NOTES = 4
# Layers that a line names.
_NAMES = 3
LEVEL_HEADINGS = ("level", "rank", "components")


class Levelled(Protocol):
    """What says how a layer is decomposed, as ``LayerReport`` names it."""

    @property
    def level(self) -> str | None:
        """Which filters share components."""

    @property
    def rank(self) -> int | None:
        """R."""

    @property
    def clusters(self) -> int | None:
        """K."""

    @property
    def components(self) -> int | None:
        """M."""


def level_cells(layer: Levelled) -> tuple[str, str, str]:
    """Return level, rank and components of a layer for the columns ``LEVEL_HEADINGS``, ``-`` where there is none.

    The rank stands for filters with components of their own; where they share some, the layer's components do.
    """
    if layer.level is None:
        return "-", "-", "-"
    if layer.components is None:
        return layer.level, str(layer.rank), "-"
    level = f"{layer.level} ({layer.clusters})" if layer.level == "cluster" else layer.level
    return level, "-", str(layer.components)


def size_in_words(layer: Levelled) -> str:
    """Return ``level layer, 24 components`` or ``level filter, rank 2``; ``dense`` where a layer is not decomposed."""
    level, rank, components = level_cells(layer)
    if layer.level is None:
        return "dense"
    return f"level {level}, {f'rank {rank}' if layer.components is None else f'{components} components'}"


def in_words(layer: LayerReport) -> str:
    """Return what a layer became, with its error: ``level layer, 24 components, NMSE 0.1200``."""
    return size_in_words(layer) + ("" if layer.level is None or layer.nmse is None else f", NMSE {layer.nmse:.4f}")


def budget_in_words(plan: BudgetPlan) -> str:
    """Return what a budget asked for, what was reached, and how many layers it takes at which level."""
    reached = {"MACs": (plan.budget.macs, plan.macs), "parameters": (plan.budget.params, plan.params)}
    asked = [f"{name} {wish:.4g}: {got:.4f}" for name, (wish, got) in reached.items() if wish is not None]
    if plan.budget.latency is not None and plan.milliseconds is not None:
        asked.append(
            f"milliseconds {plan.budget.latency:.4g}: {_time_in_words(plan.milliseconds, foretold=plan.keep == 1)}"
        )
    levels = Counter(layer.level for layer in plan.layers if layer.level is not None)
    found = ", ".join(f"{count} at level {level}" for level, count in sorted(levels.items()))
    dense = len(plan.layers) - levels.total()
    kind = "compressed" if plan.divergence else "decomposed"
    words = f"budget of the {kind} model, {', '.join(asked)} of the dense one: {found or 'no layer decomposed'}"
    words += "; 1 layer stays dense" if dense == 1 else f"; {dense} layers stay dense" if dense else ""
    if plan.groups:
        words += f"; {len(plan.groups)} group{'s' if len(plan.groups) > 1 else ''} of channels pruned"
    if plan.keep < 1:
        words += f"; {plan.keep:.3g} of the channels asked of every group that may be pruned"
    if plan.divergence:
        tried = ", ".join(f"{name} {value:.4g}" for name, value in sorted(plan.divergence.items()))
        words += f"; divergence on held-back images: {tried}; kept: {plan.phases}"
        if set(plan.divergence) == {"decomposition"}:
            words += " (no plan that removes channels was foretold to be better and came within the budget)"
        if plan.missed:
            words += f"; out of reach: {', '.join(plan.missed)}"
    return words


def _time_in_words(found: Milliseconds, *, foretold: bool) -> str:
    """Return the share of the dense model's time, and what it was foretold by: nothing foretells even pruning."""
    if found.measured is None:
        return (
            f"{found.share:.4f} (predicted {found.predicted:.3g} of {found.dense:.3g} ms by the table that was given)"
        )
    predicted = f", predicted {found.predicted:.3g} ms" if foretold else ""
    return (
        f"{found.share:.4f} (measured {found.measured:.3g} of {found.dense:.3g} ms as delivered{predicted}; plans "
        f"timed: {found.plans})"
    )


def calibration_in_words(report: CalibrationReport) -> list[str]:
    """Return a line on how near the outputs came to the dense model's, and one for each target, note and reason."""
    stages = ", ".join(f"{stage} {value:.4g}" for stage, value in report.divergence.items())
    lines = [
        f"fitted to {report.images} images in {report.seconds:.0f} s; divergence from the dense model on "
        f"{compared_on(report)}: {stages}; kept: {report.chosen}"
    ]
    groups: dict[str, list[str]] = {}
    for layer in report.layers:
        note = f" ({layer.note})" if layer.note else ""
        groups.setdefault(f"fitted, target {layer.target}{note}", []).append(layer.name)
    for name, reason in report.left:
        groups.setdefault(f"not fitted ({reason})", []).append(name)
    for words, names in groups.items():
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        lines.append(f"{words}, {len(names)}: {', '.join(names[:_NAMES])}{more}")
    return lines


def compared_on(report: CalibrationReport | DistillationReport) -> str:
    """Return in words which images a choice was made on: of a single batch none is held back."""
    return f"{report.held_back} others" if report.held_back else "the same images"


def distillation_in_words(report: DistillationReport) -> str:
    """Return what learning from the dense model brought, and whether it is kept."""
    stages = ", ".join(f"{stage} {value:.4g}" for stage, value in report.divergence.items())
    kept = "it is kept" if report.kept == "after" else "it did not help, and is undone"
    return (
        f"learned from the dense model on {report.images} images, {report.steps} steps at a rate of {report.lr:.2g} "
        f"in {report.seconds:.0f} s, at its outputs and those of {len(report.blocks)} blocks; divergence on "
        f"{compared_on(report)}: {stages}; {kept}"
    )


def note_on_distances(report: CompressionReport) -> str | None:
    """Return a sentence on the pruned groups whose filters not all factors could tell apart; None where all could.

    A factor of R components in at most R dimensions spans its whole space for every filter, whatever the filter is.
    """
    groups = report.pruning.groups
    found = [group for group in groups if group.notes]
    if not found:
        return None
    counts = Counter(note.split(",")[0] for group in found for note in group.notes)
    told = "; ".join(f"{note} ({count} x)" for note, count in counts.most_common(_NOTES))
    return (
        f"PABS compared {len(found)} of {len(groups)} pruned groups by a part of the factors, which alone decided: "
        f"{told}. A factor informs where the rank is below its dimension: vertical and horizontal ones of 3x3 kernels "
        "at ranks 1 and 2, the head at ranks below the input channels."
    )
