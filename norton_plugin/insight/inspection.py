"""Inspection: the layers of a model, their cost, and which of them can be decomposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.cost import count_cost
from norton_plugin.modules.running import ForwardFunction, counted_by, run_model
from norton_plugin.modules.swap import names_by_identity
from norton_plugin.pipeline import check_model
from norton_plugin.pipeline.report import sharing
from norton_plugin.reasons import Reason
from norton_plugin.recipe import Decomposition, LayerRequest, Scope
from norton_plugin.surgery.layouts import LayerShape, highest_layouts
from norton_plugin.surgery.targets import plan_decomposition

_KINDS = (nn.modules.conv._ConvNd, nn.Linear, ConvBlock, CPDLinear)


@dataclass(frozen=True)
class InspectedLayer:
    """One layer that multiplies.

    Attributes:
        name: Its first dotted name.
        kind: Class of the module.
        kernel: (Kh, Kw), None where it is no convolution.
        stride: (vertical, horizontal), None where it is no convolution.
        in_channels: Channels or features of its input.
        out_channels: Channels or features of its output.
        groups: Channel groups.
        macs: Of one pass over the example.
        parameters: Numbers in its own parameters.
        break_even: Highest rank per filter that saves MACs, None where it is no 2-D convolution.
        break_even_components: Most components of the level "layer" that save MACs, None where it is neither a 2-D
            convolution nor a Linear layer.
        eligible: Whether it can be decomposed at the level "filter".
        shared: Whether it can be decomposed at the level "layer", as 1x1 convolutions and Linear layers can.
        code: Why it is not eligible, as of ``Reason.code``, empty where it is.
        reason: The same in words.
        rank: R where it is decomposed already.
        level: Which filters share components, where it is decomposed already.
        clusters: K, where filters share components already.
        components: M, where filters share components already.
    """

    name: str
    kind: str
    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    in_channels: int
    out_channels: int
    groups: int
    macs: int
    parameters: int
    break_even: int | None
    break_even_components: int | None
    eligible: bool
    shared: bool
    code: str
    reason: str
    rank: int | None
    level: str | None
    clusters: int | None
    components: int | None


@dataclass(frozen=True)
class Inspection:
    """A whole model.

    Attributes:
        layers: Convolutions, Linear layers and what took the place of some, in the model's order.
        macs: Of one pass over the example, everything included.
        parameters: Numbers in the model's parameters.
    """

    layers: tuple[InspectedLayer, ...]
    macs: int
    parameters: int


def inspect_model(
    model: nn.Module, example_inputs: Any, *, scope: Scope | None = None, forward_fn: ForwardFunction | None = None
) -> Inspection:
    """Look at every layer; the model is not changed.

    Args:
        model: Any model.
        example_inputs: As of ``pipeline.compress``.
        scope: Layers outside are listed as such.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.

    Raises:
        RecipeError: A pattern of the scope matches nothing.
        SurgeryError: The model does not run on the example, or has values that are not finite.
    """
    check_model(model, example_inputs)
    scope = scope or Scope()
    scope.check([name for name, _ in model.named_modules(remove_duplicate=False) if name])
    cost = count_cost(model, lambda: run_model(model, example_inputs, counted_by(forward_fn)))
    targets, skipped = plan_decomposition(model, Decomposition(rank=1), scope=scope, map_sizes=cost.map_sizes)
    eligible = {target.names[0] for target in targets}
    at_any_level = Decomposition(level="layer", share=1.0, linear=True)
    shared = {t.names[0] for t in plan_decomposition(model, at_any_level, scope=scope, map_sizes=cost.map_sizes)[0]}
    causes = {entry.name: entry.cause for entry in skipped}
    layers = []
    for module, names in names_by_identity(model).items():
        if not isinstance(module, _KINDS) and names[0] not in causes:
            continue
        name = names[0]
        default = Reason.DECOMPOSED if isinstance(module, ConvBlock | CPDLinear) else Reason.LINEAR
        cause = None if name in eligible else causes.get(name, default.because())
        layers.append(
            InspectedLayer(
                name=name,
                kind=type(module).__name__,
                **_shape(module, cost.map_sizes.get(name)),
                macs=cost.layer_macs.get(name, 0),
                parameters=sum(p.numel() for p in module.parameters()),
                eligible=cause is None,
                shared=name in shared,
                code=cause.code if cause else "",
                reason=cause.text if cause else "",
                **sharing(module),
            )
        )
    return Inspection(tuple(layers), cost.macs, cost.parameters)


def _shape(module: Any, sizes: Any) -> dict[str, Any]:
    """Return what a layer looks like, and up to which size a block in its place saves MACs."""
    if isinstance(module, nn.Linear | CPDLinear):
        features = {"in_channels": module.in_features, "out_channels": module.out_features, "groups": 1}
        shape = LayerShape(module.out_features, module.in_features, (1, 1))
        features["break_even_components"] = _most(shape, "layer")
        return {"kernel": None, "stride": None, "break_even": None, **features}
    kernel, stride = tuple(module.kernel_size), tuple(module.stride)
    before, after = sizes or (stride, (1,) * len(stride))
    per_filter = module.in_channels // module.groups
    shape = LayerShape(module.out_channels, per_filter, kernel, module.groups, before, after)
    never = getattr(module, "transposed", True)  # a layer that does not say so is none that blocks replace
    limit, most = (None, None) if never else (_most(shape, "filter"), _most(shape, "layer"))
    return {
        "kernel": kernel,
        "stride": stride,
        "break_even": limit,
        "break_even_components": most,
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "groups": module.groups,
    }


def _most(shape: LayerShape, level: Literal["filter", "layer"]) -> int:
    """Return the highest rank or the most components that save MACs at a level; 0 where none do."""
    for layout in highest_layouts(shape, LayerRequest(level=level, share=1.0)):
        return layout.rank if layout.components is None else layout.components
    return 0
