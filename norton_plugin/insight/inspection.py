"""Inspection: the layers of a model, their cost, and which of them can be decomposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from norton_plugin.blocks import CPDBlock, break_even_rank
from norton_plugin.cost import count_cost
from norton_plugin.modules.running import ForwardFunction, run_model
from norton_plugin.modules.swap import names_by_identity
from norton_plugin.pipeline import check_model
from norton_plugin.reasons import Reason
from norton_plugin.recipe import Decomposition, Scope
from norton_plugin.surgery.targets import plan_decomposition


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
        break_even: Highest rank that saves MACs, None where it is no convolution.
        rank: R where it is decomposed already.
        eligible: Whether it can be decomposed.
        code: Why not, as of ``Reason.code``, empty where it can.
        reason: The same in words.
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
    rank: int | None
    eligible: bool
    code: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """A whole model.

    Attributes:
        layers: Convolutions, Linear layers and CPDBlocks, in the model's order.
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
    cost = count_cost(model, lambda: run_model(model, example_inputs, forward_fn))
    targets, skipped = plan_decomposition(model, Decomposition(rank=1), scope=scope, map_sizes=cost.map_sizes)
    eligible = {target.names[0] for target in targets}
    causes = {entry.name: entry.cause for entry in skipped}
    layers = []
    for module, names in names_by_identity(model).items():
        if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear | CPDBlock):
            continue
        name = names[0]
        default = Reason.DECOMPOSED if isinstance(module, CPDBlock) else Reason.LINEAR
        cause = None if name in eligible else causes.get(name, default.because())
        layers.append(
            InspectedLayer(
                name=name,
                kind=type(module).__name__,
                **_shape(module, cost.map_sizes.get(name)),
                macs=cost.layer_macs.get(name, 0),
                parameters=sum(p.numel() for p in module.parameters()),
                eligible=cause is None,
                code=cause.code if cause else "",
                reason=cause.text if cause else "",
            )
        )
    return Inspection(tuple(layers), cost.macs, cost.parameters)


def _shape(module: Any, sizes: Any) -> dict[str, Any]:
    if isinstance(module, nn.Linear):
        shape: dict[str, Any] = dict.fromkeys(("kernel", "stride", "break_even", "rank"))
        return {**shape, "in_channels": module.in_features, "out_channels": module.out_features, "groups": 1}
    kernel, stride = tuple(module.kernel_size), tuple(module.stride)
    limit = None
    if len(kernel) == 2:
        before, after = sizes or (None, None)
        per_filter = module.in_channels // module.groups
        limit = break_even_rank(per_filter, kernel, stride=stride, input_size=before, output_size=after)
        limit = min(limit, kernel[0] * kernel[1])
    return {
        "kernel": kernel,
        "stride": stride,
        "break_even": limit,
        "rank": getattr(module, "rank", None) if isinstance(module, CPDBlock) else None,
        "in_channels": module.in_channels,
        "out_channels": module.out_channels,
        "groups": module.groups,
    }
