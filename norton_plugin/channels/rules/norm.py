"""Norms."""

from __future__ import annotations

from torch import Tensor

from norton_plugin.channels.label_maps import Shadow, along, compact, varying
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.rules.elementwise import Operand, combine
from norton_plugin.channels.rules.reshape import united
from norton_plugin.channels.tracer import Tracer


@rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm",
      "_batch_norm_no_update", "_batch_norm_with_update", "miopen_batch_norm", "native_batch_norm_legit")  # fmt: skip
def batch_norm(tracer: Tracer, call: Call) -> list[Shadow]:
    """One scale and shift per position of dimension 1."""
    x = call.args[0]
    shape = tuple(x.shape)
    operands: list[Operand] = [(tracer.shadow(x), shape)]
    for parameter in call.args[1:5]:
        if isinstance(parameter, Tensor):
            view = (1, -1) + (1,) * (x.dim() - 2)
            planes = tuple(plane.reshape(view) for plane in tracer.shadow(parameter).planes)
            operands.append((Shadow(planes), (1, parameter.shape[0]) + (1,) * (x.dim() - 2)))
    if any(flag is True for flag in call.args[5:6]):
        tracer.step("batch_norm", [p for p in tracer.shadow(x).planes if set(varying(p)) - {1}])
    rows = None
    if isinstance(call.args[1], Tensor) and len(operands) > 1 and len(operands[1][0].planes) == 1:
        rows = operands[1][0].planes[0].expand(shape)
    return [Shadow(combine(tracer, operands, shape), rows=rows)] + [Shadow()] * (len(call.out) - 1)


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(tracer: Tracer, call: Call) -> list[Shadow]:
    """Statistics over the last dimensions, over the kept channels in the masked model."""
    x, normalized = call.args[0], call.args[1]
    first = x.dim() - len(normalized)
    operands = [(tracer.shadow(x), tuple(x.shape))]
    operands += [(tracer.shadow(p), tuple(p.shape)) for p in call.args[2:4] if isinstance(p, Tensor)]
    consumed = [p for p in tracer.shadow(x).planes if any(d >= first for d in varying(p))]
    tracer.step("layer_norm", consumed)
    if tracer.stack and consumed and len(normalized) == 1:
        tracer.norm_inputs[tracer.stack[-1]] = along(consumed[0], x.dim() - 1)
    rows = None
    if len(operands) > 1 and len(operands[1][0].planes) == 1:
        rows = operands[1][0].planes[0].expand(x.shape)
    return [Shadow(combine(tracer, operands, tuple(x.shape)), rows=rows)] + [Shadow()] * (len(call.out) - 1)


@rule("native_group_norm")
def group_norm(tracer: Tracer, call: Call) -> list[Shadow]:
    """Whole groups go where there are more of them than channels in each; otherwise the same places of each."""
    x, channels, groups = call.args[0], call.args[4], call.args[6]
    width = channels // groups
    shape = tuple(x.shape)
    planes = []
    whole = groups > width
    for plane in tracer.shadow(x).planes:
        if 1 in varying(plane):
            split = plane.reshape(shape[0], groups, width, *shape[2:])
            plane = united(tracer, compact(split), [2 if whole else 1]).reshape(shape)
        planes.append(compact(plane))
    operands: list[Operand] = [(Shadow(tuple(planes)), shape)]
    for parameter in call.args[1:3]:
        if isinstance(parameter, Tensor):
            view = (1, -1) + (1,) * (x.dim() - 2)
            own = tuple(plane.reshape(view) for plane in tracer.shadow(parameter).planes)
            operands.append((Shadow(own), (1, channels) + (1,) * (x.dim() - 2)))
    if tracer.stack:
        tracer.whole_groups[tracer.stack[-1]] = whole
    if not whole:
        tracer.step("group_norm", [p for p in planes if 1 in varying(p)])
    else:
        tracer.step("zero", [])
    return [Shadow(combine(tracer, operands, shape))] + [Shadow()] * (len(call.out) - 1)
