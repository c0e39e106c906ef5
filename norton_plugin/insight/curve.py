"""What each level of sharing costs, and loses, in each layer: points from the smallest block to the break-even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from norton_plugin.cost import count_cost
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.running import ForwardFunction, counted_by, run_model
from norton_plugin.patterns import matches_any, require_matches
from norton_plugin.pipeline import check_model
from norton_plugin.reasons import Cause
from norton_plugin.recipe import Decomposition, LayerRequest, Scope
from norton_plugin.surgery.factorise import factorise
from norton_plugin.surgery.layouts import LayerShape, Layout, highest_layouts, layouts_for
from norton_plugin.surgery.report import summary
from norton_plugin.surgery.targets import Target, plan_decomposition

# 1x1 kernels and Linear layers have no rank per filter to go by: their points are at these parts of the dense MACs.
PARTS = 8


@dataclass(frozen=True)
class CurvePoint:
    """One level at one step.

    Attributes:
        step: The rank per filter that the point is no dearer than; for 1x1 kernels and Linear layers, eighths of the
            dense layer's MACs.
        level: "filter", "cluster", "layer" or "spatial".
        clusters: K, None at the level "filter".
        rank: R per filter or per cluster.
        components: M of the layer, None at the level "filter".
        share: MACs as a share of the dense layer's.
        nmse: ``||W - W^||^2 / ||W||^2`` of the layer, None where it was not measured.
    """

    step: int
    level: str
    clusters: int | None
    rank: int
    components: int | None
    share: float
    nmse: float | None = None


@dataclass(frozen=True)
class LayerCurve:
    """All points of one layer.

    Attributes:
        name: Its first dotted name.
        kind: Class of the module.
        shape: What decides its cost.
        points: By step, then filter, cluster, layer and spatial level; a level that has no block at a step is left out.
    """

    name: str
    kind: str
    shape: LayerShape
    points: tuple[CurvePoint, ...]


def cost_curves(
    model: nn.Module,
    example_inputs: Any,
    *,
    scope: Scope | None = None,
    layers: Sequence[str] = (),
    clusters: int = 4,
    nmse: bool = False,
    forward_fn: ForwardFunction | None = None,
) -> tuple[LayerCurve, ...]:
    """Return the curve of every layer that can be decomposed at any level; the model is not changed.

    Args:
        model: Any model.
        example_inputs: As of ``pipeline.compress``.
        scope: Layers outside are left out.
        layers: Patterns of the layers wanted; all by default.
        clusters: K of the level "cluster", in each group of a grouped convolution.
        nmse: Also decompose the layers' own weights at every point.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.

    Raises:
        RecipeError: A pattern matches nothing.
        SurgeryError: The model does not run on the example, or no layer wanted can be decomposed.
    """
    check_model(model, example_inputs)
    scope = scope or Scope()
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    scope.check(names)
    require_matches(layers, names, what="--layer")
    sizes = count_cost(model, lambda: run_model(model, example_inputs, counted_by(forward_fn))).map_sizes
    everything = Decomposition(level="auto", share=1.0, clusters=clusters, linear=True)
    targets, skipped = plan_decomposition(model, everything, scope=scope, map_sizes=sizes)
    if layers:
        targets = [target for target in targets if any(matches_any(layers, name) for name in target.names)]
        skipped = [entry for entry in skipped if matches_any(layers, entry.name)]
    if not targets:
        raise SurgeryError(f"no layer can be decomposed at any level: {summary(skipped) or 'there is none'}")
    jobs = [(target, step, layout) for target in targets for step, layout in _steps(target, clusters)]
    errors = _errors([(target, layout) for target, _, layout in jobs]) if nmse else [None] * len(jobs)
    points: dict[str, list[CurvePoint]] = {target.names[0]: [] for target in targets}
    for (target, step, layout), error in zip(jobs, errors, strict=True):
        share = target.shape.macs(layout) / target.shape.dense_macs
        size = (layout.level, layout.clusters, layout.rank, layout.components)
        points[target.names[0]].append(CurvePoint(step, *size, share, error))
    return tuple(
        LayerCurve(target.names[0], type(target.module).__name__, target.shape, tuple(points[target.names[0]]))
        for target in targets
    )


def _steps(target: Target, clusters: int) -> list[tuple[int, Layout]]:
    """Return what a recipe would make of a layer at each step, without what the level "filter" cannot be."""
    shape = target.shape
    base = LayerRequest(level="auto", clusters=clusters)
    if shape.pointwise:
        requests = [(part, replace(base, share=part / PARTS)) for part in range(1, PARTS)]
    else:
        limit = highest_layouts(shape, LayerRequest(level="filter", rank=1))
        requests = [(rank, replace(base, rank=rank)) for rank in range(1, limit[0].rank + 1 if limit else 1)]
    found = []
    for step, request in requests:
        layouts = layouts_for(shape, request, name=target.names[0], more_macs=False)
        if not isinstance(layouts, Cause):
            linear = isinstance(target.module, nn.Linear)
            found += [(step, layout) for layout in layouts if not linear or layout.level == "layer"]
    return found


def _errors(jobs: Sequence[tuple[Target, Layout]]) -> list[float]:
    """Decompose every layer in every layout, together."""
    targets = [replace(target, request=LayerRequest(rank=1), layouts=(layout,)) for target, layout in jobs]
    found, _ = factorise(targets, Decomposition(rank=1))
    return [each.layer_nmse for _, each in found]
