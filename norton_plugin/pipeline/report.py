"""What a compression did, in numbers: the whole, and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.budget import BudgetPlan
from norton_plugin.calibration import CalibrationReport
from norton_plugin.cost import ModelCost
from norton_plugin.distillation import DistillationReport
from norton_plugin.pipeline.warned import (
    warning_of_branches,
    warning_of_earlier_blocks,
    warning_of_large_components,
    warning_of_missed_time,
    warning_of_pruning_below_budget,
    warning_of_time_beside_layers,
    warning_of_untied,
)
from norton_plugin.surgery.report import DecomposedLayer, DecompositionReport, PruningReport, Skipped, blocking
from norton_plugin.surgery.structure import Structure


@dataclass(frozen=True)
class LayerReport:
    """One layer before and after.

    Attributes:
        name: Its first dotted name.
        kind: Class of the module now.
        macs_before: MACs of one pass over the example, calls of a shared layer added up.
        macs_after: The same afterwards.
        parameters_before: Numbers in the layer's own parameters.
        parameters_after: The same afterwards.
        rank: R, components per filter, or per cluster where filters share them; None where the layer is dense.
        nmse: Mean NMSE of its filters at decomposition, None where it is dense.
        kept: Share of its output channels that stayed, in (0, 1].
        level: Which filters share components: "filter" (none), "cluster", "layer" or "spatial"; None where it is
            dense.
        clusters: K, None where it is dense or its filters share nothing.
        components: M, all components of the layer, None where it is dense or its filters share nothing.
    """

    name: str
    kind: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    rank: int | None
    nmse: float | None
    kept: float
    level: str | None = None
    clusters: int | None = None
    components: int | None = None


@dataclass(frozen=True)
class CompressionReport:
    """All that ``compress`` did.

    Attributes:
        macs_before: MACs of one pass over the example inputs (batch included).
        macs_after: The same of the compressed model, CPDBlocks in their separable form (``cost.count_cost``).
        parameters_before: Numbers in the model's parameters.
        parameters_after: The same of the compressed model.
        layers: Every layer that has MACs, in the model's order.
        decomposition: Phase one in detail.
        pruning: Phase two in detail.
        calibration_images: Images used to re-estimate BatchNorm statistics.
        seconds: Wall-clock time of the whole job.
        structure: What rebuilds the compressed model from the dense one.
        calibration: What fitting the layers to images did; None where it was not asked for.
        budget: What was found for a budget; None where none was given.
        distillation: What learning from the dense model did; None where it was not asked for.
        branched: Blocks of the dense model whose branches timm joins for inference, and that are not joined.
    """

    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    layers: tuple[LayerReport, ...]
    decomposition: DecompositionReport
    pruning: PruningReport
    calibration_images: int
    seconds: float
    structure: Structure
    calibration: CalibrationReport | None = None
    budget: BudgetPlan | None = None
    distillation: DistillationReport | None = None
    branched: int = 0

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Everything left as it was, with reasons, of both phases."""
        return self.decomposition.skipped + self.pruning.skipped

    @property
    def verify_seconds(self) -> float:
        """What proving the result right cost, of both phases."""
        return self.decomposition.verify_seconds + self.pruning.verify_seconds

    @property
    def largest_error(self) -> float | None:
        """Largest relative error that was found and accepted, of both phases; None where nothing was compared."""
        errors = (self.decomposition.largest_error, self.pruning.largest_error)
        return max((error for error in errors if error is not None), default=None)

    @property
    def status(self) -> str:
        """How far it came: every group of channels pruned that may be, some of them, or none.

        Returns:
            ``"full"``, ``"partial"`` or ``"decompose-only"``; ``"full"`` as well where pruning was not asked for.
        """
        if not self.pruning.groups:
            return "decompose-only" if self.pruning.skipped else "full"
        return "partial" if blocking(self.pruning.skipped) else "full"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user has to know, and what to do about it; one sentence or more for each."""
        found: list[str | None] = []
        if self.budget is not None:
            found += [warning_of_missed_time(self.budget), warning_of_time_beside_layers(self.budget)]
            found += [self._below_budget(self.budget)]
        found += [
            warning_of_branches(self.branched),
            warning_of_earlier_blocks(self.decomposition),
            warning_of_untied(self.decomposition),
            warning_of_large_components(self.decomposition),
        ]
        found += [] if self.calibration is None else [self.calibration.few_samples]
        return tuple(words for words in found if words)

    def _below_budget(self, plan: BudgetPlan) -> str | None:
        macs, params = self.macs_after / self.macs_before, self.parameters_after / self.parameters_before
        return warning_of_pruning_below_budget(plan, macs=macs, params=params)

    def __str__(self) -> str:
        """Return what became of the model in a line, and a line for each warning."""
        lines = [
            f"MACs {self.macs_before} -> {self.macs_after}, parameters {self.parameters_before} -> "
            f"{self.parameters_after}; layers decomposed: {len(self.decomposition.layers)}, groups of channels pruned: "
            f"{len(self.pruning.groups)}"
        ]
        return "\n".join([*lines, *(f"warning: {words}" for words in self.warnings)])

    @classmethod
    def of(
        cls,
        model: nn.Module,
        compressed: nn.Module,
        before: ModelCost,
        after: ModelCost,
        decomposition: DecompositionReport,
        pruning: PruningReport,
        **facts: Any,
    ) -> CompressionReport:
        """Add to what the steps reported how the two models compare.

        Args:
            model: The dense original.
            compressed: What became of it.
            before: Cost of the original.
            after: Cost of the compressed model.
            decomposition: Of phase one.
            pruning: Of phase two.
            **facts: The remaining attributes.
        """
        return cls(
            macs_before=before.macs,
            macs_after=after.macs,
            parameters_before=before.parameters,
            parameters_after=after.parameters,
            layers=_layer_reports(model, compressed, before, after, decomposition.layers),
            decomposition=decomposition,
            pruning=pruning,
            branched=sum(_is_branched(module) for module in model.modules()),
            **facts,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it JSON-able, without the structure (it has a place of its own in an artefact)."""
        plain = asdict(self)
        del plain["structure"]
        for name in ("decomposition", "pruning"):
            plain[name]["skipped"] = [entry.to_dict() for entry in getattr(self, name).skipped]
        del plain["pruning"]["removed"]  # the structure tells the widths, and the weights which channels stayed
        plain["pruning"]["rule_failures"] = [cause.text for cause in self.pruning.rule_failures]
        plain |= {
            "status": self.status,
            "verify_seconds": self.verify_seconds,
            "largest_error": self.largest_error,
            "warnings": list(self.warnings),
        }
        return plain


def _layer_reports(
    model: nn.Module,
    compressed: nn.Module,
    before: ModelCost,
    after: ModelCost,
    decomposed: Sequence[DecomposedLayer],
) -> tuple[LayerReport, ...]:
    records = {name: layer for layer in decomposed for name in layer.names}
    old_modules, new_modules = dict(model.named_modules()), dict(compressed.named_modules())
    reports = []
    for name, macs in before.layer_macs.items():
        old, new = old_modules[name], new_modules.get(name)
        if new is None:
            continue  # it computed the weight of a layer that was replaced
        layer = records.get(name)
        reports.append(
            LayerReport(
                name=name,
                kind=type(new).__name__,
                macs_before=macs,
                macs_after=after.layer_macs.get(name, 0),
                parameters_before=_own_parameters(old),
                parameters_after=_own_parameters(new),
                nmse=layer.nmse_mean if layer else None,
                kept=_width(new) / _width(old),
                **sharing(new),
            )
        )
    return tuple(reports)


def sharing(module: nn.Module) -> dict[str, Any]:
    """Return rank, level, clusters and components of a module as ``LayerReport`` names them; None of a dense one."""
    rank = clusters = components = None
    level = module.level if isinstance(module, ConvBlock | CPDLinear) else None
    if isinstance(module, CPDLinear):
        rank, clusters, components = module.components, 1, module.components
    elif isinstance(module, ConvBlock):
        rank = module.rank
        if level != "filter":
            clusters, components = module.clusters, module.components
    return {"rank": rank, "level": level, "clusters": clusters, "components": components}


def _is_branched(module: nn.Module) -> bool:
    """Tell blocks that can be joined, as timm marks them: they have no joined convolution yet."""
    return callable(getattr(module, "reparameterize", None)) and getattr(module, "reparam_conv", module) is None


def _own_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _width(module: nn.Module) -> int:
    width = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
    return int(width) if isinstance(width, int) else 1
