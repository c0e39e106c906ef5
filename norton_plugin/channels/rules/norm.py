"""Norms."""

from __future__ import annotations

from torch import Tensor

from norton_plugin.channels.label_maps import ChannelLabels, along, compact, varying
from norton_plugin.channels.masking import BATCH_NORM, GROUP_NORM, LAYER_NORM
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.elementwise import Operand, combine
from norton_plugin.channels.rules.reshape import united
from norton_plugin.channels.trace import Trace


def _per_channel(trace: Trace, call: Call, parameters: slice) -> list[Operand]:
    """Return the parameters among the arguments as operands: one value per position of dimension 1."""
    trailing = (1,) * (call.args[0].dim() - 2)
    operands: list[Operand] = []
    for parameter in call.args[parameters]:
        if isinstance(parameter, Tensor):
            maps = tuple(label_map.reshape((1, -1, *trailing)) for label_map in trace.labels_of(parameter).maps)
            operands.append((ChannelLabels(maps), (1, parameter.shape[0], *trailing)))
    return operands


def _scaled_rows(call: Call, operands: list[Operand]) -> tuple[Tensor, ...]:
    """Return the producer rows of a norm's output: those of its weight, which scales each channel."""
    if isinstance(call.args[1], Tensor) and len(operands) > 1 and len(operands[1][0].maps) == 1:
        return (operands[1][0].maps[0].expand(call.args[0].shape),)
    return ()


def _outputs(call: Call, maps: tuple[Tensor, ...], rows: tuple[Tensor, ...] = ()) -> list[ChannelLabels]:
    return [ChannelLabels(maps, producer_rows=rows)] + [ChannelLabels()] * (len(call.out) - 1)


@register_rule("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
               "cudnn_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update", "miopen_batch_norm",
               "native_batch_norm_legit", masked_by=BATCH_NORM)  # fmt: skip
def batch_norm(trace: Trace, call: Call) -> list[ChannelLabels]:
    """Combine with one scale and one shift per position of dimension 1."""
    x = call.args[0]
    operands: list[Operand] = [(trace.labels_of(x), tuple(x.shape)), *_per_channel(trace, call, slice(1, 5))]
    if any(flag is True for flag in call.args[5:6]):
        trace.mask([label_map for label_map in trace.labels_of(x).maps if set(varying(label_map)) - {1}])
    return _outputs(call, combine(trace, operands, tuple(x.shape)), _scaled_rows(call, operands))


@register_rule("native_layer_norm", "_fused_rms_norm", masked_by=LAYER_NORM)
def layer_norm(trace: Trace, call: Call) -> list[ChannelLabels]:
    """Take statistics over the last dimensions, in the masked model over the kept channels."""
    x, normalized = call.args[0], call.args[1]
    first = x.dim() - len(normalized)
    operands = [(trace.labels_of(x), tuple(x.shape))]
    operands += [(trace.labels_of(p), tuple(p.shape)) for p in call.args[2:4] if isinstance(p, Tensor)]
    consumed = [label_map for label_map in trace.labels_of(x).maps if any(d >= first for d in varying(label_map))]
    trace.mask(consumed)
    if trace.module is not None and consumed and len(normalized) == 1:
        trace.notes.norm_inputs[trace.module] = along(consumed[0], x.dim() - 1)
    rows: tuple[Tensor, ...] = ()
    if len(operands) > 1 and len(operands[1][0].maps) == 1:
        rows = (operands[1][0].maps[0].expand(x.shape),)
    return _outputs(call, combine(trace, operands, tuple(x.shape)), rows)


@register_rule("native_group_norm", masked_by=GROUP_NORM)
def group_norm(trace: Trace, call: Call) -> list[ChannelLabels]:
    """Unite whole groups where there are more groups than channels in each; otherwise the same positions of each."""
    x, groups = call.args[0], call.args[6]
    width = call.args[4] // groups
    shape = tuple(x.shape)
    maps = []
    whole = groups > width
    for label_map in trace.labels_of(x).maps:
        if 1 in varying(label_map):
            split = label_map.reshape(shape[0], groups, width, *shape[2:])
            label_map = united(trace, compact(split), [2 if whole else 1]).reshape(shape)
        maps.append(compact(label_map))
    operands: list[Operand] = [(ChannelLabels(tuple(maps)), shape), *_per_channel(trace, call, slice(1, 3))]
    if trace.module is not None:
        trace.notes.whole_groups[trace.module] = whole
    if not whole:
        trace.mask([label_map for label_map in maps if 1 in varying(label_map)])
    return _outputs(call, combine(trace, operands, shape))
