"""Operations that work element by element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from norton_plugin.channels.label_maps import ChannelLabels, compact, core, varying
from norton_plugin.channels.operations import Number, register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Reason

# Token mixing and talking heads: the other operand has its channels along another dimension.
_POSITIONS = Reason.POSITIONS_OR_HEADS.because()
Operand = tuple[ChannelLabels, tuple[int, ...]]
# A sum of more layers than this is a trunk, which nobody rescales.
_MAX_ROWS = 4


def combine(trace: Trace, operands: Sequence[Operand], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return the label maps of an element-wise result; see ``combined``, of which this is what is followed on."""
    return combined(trace, operands, shape)[0]


def combined(
    trace: Trace, operands: Sequence[Operand], shape: tuple[int, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Combine label maps element by element: channels combined in one element are the same channel.

    A channel that is combined with an operand of full size without channels has to stay: that operand cannot lose
    the position.

    Args:
        trace: Takes unions and pins.
        operands: Labels and shape of each; shapes broadcast.
        shape: Shape of the result.

    Returns:
        The maps of the result, and those of channels that have to stay, which are not followed on.
    """
    result: list[Tensor] = []
    sources: list[set[int]] = []
    for number, (labels, _) in enumerate(operands):
        for label_map in labels.maps:
            label_map = label_map.expand(shape)
            live = set(varying(label_map))
            match = next((i for i, other in enumerate(result) if live & set(varying(other))), None)
            if match is None:
                result.append(label_map)
                sources.append({number})
                continue
            result[match] = _merged(trace, result[match], label_map)
            sources[match].add(number)
    free, stays = [], []
    for label_map, own in zip(result, sources, strict=True):
        others = [operand for number, operand in enumerate(operands) if number not in own]
        fixed = [labels for labels, sizes in others if _full_along(sizes, varying(label_map), len(shape))]
        if fixed:
            # Pinned for good: there is no need to follow them any further.
            positions = all((labels.maps or labels.scores) and not labels.constant for labels in fixed)
            trace.pin(label_map, _POSITIONS if positions else Reason.FIXED_WIDTH_TENSOR.because())
            stays.append(label_map)
        else:
            free.append(label_map)
    return tuple(free), tuple(stays)


def _full_along(sizes: Sequence[int], dims: Sequence[int], ndim: int) -> bool:
    """Return whether an operand that broadcasts to ``ndim`` dimensions has more than one position along ``dims``."""
    return any(size > 1 for d, size in enumerate(sizes, ndim - len(sizes)) if d in dims)


def _merged(trace: Trace, a: Tensor, b: Tensor) -> Tensor:
    trace.unite(a, b)
    pin_unpaired(trace, a, b)
    if len(varying(b)) < len(varying(a)):
        a, b = b, a
    small_a, small_b = torch.broadcast_tensors(core(a), core(b))
    return compact(a) if not bool((small_a == 0).any()) else torch.where(small_a != 0, small_a, small_b).expand(a.shape)


def pin_unpaired(trace: Trace, a: Tensor, b: Tensor) -> None:
    """Pin the channels of two maps or vectors that are combined with a padded position, which has no channel."""
    small_a, small_b = torch.broadcast_tensors(core(a), core(b))
    for labels, partner in ((small_a, small_b), (small_b, small_a)):
        unpaired = (labels != 0) & (partner == 0)
        if bool(unpaired.any()):
            trace.pin(labels[unpaired], Reason.PADDED_POSITION.because())


@register_rule("pointwise", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "relu6", "elu", "selu", "celu",
               "softplus", "softshrink", "hardshrink", "threshold", "log_sigmoid_forward", "prelu", "_prelu_kernel",
               "nan_to_num", "complex", "lerp", "masked_fill", "mish", "logit", "addcmul", "addcdiv", "rsub", "clamp",
               "where")  # fmt: skip
def pointwise(trace: Trace, call: Call) -> ChannelLabels | None:
    """Follow any operation that PyTorch tags as pointwise."""
    if not isinstance(call.out, Tensor):
        return None
    operands = [(trace.labels_of(tensor), _own_sizes(tensor)) for tensor in _tensors(call)]
    maps, stays = combined(trace, operands, tuple(call.out.shape))
    return ChannelLabels(maps, stays=stays)


register_rule("pow", number=Number.VALUE)(pointwise)


@register_rule("mul", "multiply", number=Number.FACTOR)
def product(trace: Trace, call: Call) -> ChannelLabels | None:
    """Follow a factor: multiplied by a constant, elements stay multiples of one output of a layer."""
    labels = pointwise(trace, call)
    first, *others = _tensors(call)
    for other in others:
        for weights, values in ((first, other), (other, first)):
            operand = trace.labels_of(values).maps, tuple(values.shape)
            weighed_positions(trace, trace.labels_of(weights).stays, *operand)
    rows = trace.labels_of(first).producer_rows
    if labels is None or any(not trace.labels_of(tensor).constant for tensor in others):
        return labels
    return _with_rows(labels, call, rows)


register_rule("div", "divide", "true_divide", "truediv", number=Number.DIVISOR)(product)
register_rule("neg")(product)


@register_rule("add", "sub", number=Number.VALUE)
def total(trace: Trace, call: Call) -> ChannelLabels | None:
    """Follow a sum: producer rows survive the bias of their own layer, and sums with other producer rows."""
    labels = pointwise(trace, call)
    tensors = _tensors(call)
    if labels is None or len(tensors) != 2:
        return labels
    own, other = (trace.labels_of(tensor) for tensor in tensors)
    if not own.producer_rows:
        return labels
    if other.producer_rows:
        return _with_rows(labels, call, _distinct((*own.producer_rows, *other.producer_rows)))
    owners = {axis.owner for rows in own.producer_rows for axis in trace.axes_in(core(rows).reshape(-1)[:1])}
    added = [axis for label_map in other.maps for axis in trace.axes_in(core(label_map).reshape(-1)[:1])]
    if added and all(axis.owner in owners and "bias" in axis.tensor for axis in added):
        return _with_rows(labels, call, own.producer_rows)
    return labels


def _distinct(rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return producer rows without those that name the same rows again; none of a sum of too many layers."""
    found = {tuple(torch.unique(core(own)).tolist()): own for own in reversed(rows)}
    return tuple(found.values())[::-1] if len(found) <= _MAX_ROWS else ()


def weighed_positions(trace: Trace, weights: Sequence[Tensor], maps: Sequence[Tensor], shape: Sequence[int]) -> None:
    """Pin what a softmax gave for positions of a tensor that has its channels elsewhere: it numbers those positions.

    Args:
        trace: Takes the pins.
        weights: Label maps that had to stay of what the tensor is multiplied with.
        maps: Label maps of the tensor.
        shape: Of the tensor.
    """
    for label_map in weights:
        shift = len(shape) - label_map.dim()
        dims = {d + shift for d in varying(label_map)}
        apart = maps and not any(dims & set(varying(other)) for other in maps)
        if apart and all(d >= 0 and shape[d] == label_map.shape[d - shift] for d in dims):
            trace.pin(label_map, _POSITIONS)


def _with_rows(labels: ChannelLabels, call: Call, rows: tuple[Tensor, ...]) -> ChannelLabels:
    alike = all(own.shape == call.out.shape for own in rows)
    return labels._replace(producer_rows=rows) if alike else labels


def _tensors(call: Call) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]


def _own_sizes(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape, with size 1 where an expanded tensor only repeats itself: there it fits any width."""
    return tuple(1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@register_rule("glu")
def glu(trace: Trace, call: Call) -> ChannelLabels:
    """Unite the halves, which are multiplied."""
    dim = call.arg(1, "dim", -1) % call.args[0].dim()
    maps = []
    for label_map in trace.labels_of(call.args[0]).maps:
        halves = label_map.split(call.out.shape[dim], dim)
        if dim in varying(label_map):
            trace.unite(halves[0], halves[1])
        maps.append(halves[0])
    return ChannelLabels(tuple(maps))
