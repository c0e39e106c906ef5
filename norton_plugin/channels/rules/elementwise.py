"""Operations that work element by element."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from norton_plugin.channels.label_maps import Shadow, compact, core, varying
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.tracer import Tracer
from norton_plugin.reasons import Reason

# Token mixing and talking heads: the other operand has its channels along another dimension.
_POSITIONS = Reason.POSITIONS_OR_HEADS.because()
Operand = tuple[Shadow, tuple[int, ...]]


def combine(tracer: Tracer, operands: Sequence[Operand], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Planes of an element-wise result: channels that meet in one element are the same channel.

    Where a channel meets an operand of full size that belongs to no channel, it has to stay: that operand cannot
    lose the position.

    Args:
        tracer: Takes unions and pins.
        operands: Shadow and shape of each; shapes broadcast.
        shape: Shape of the result.
    """
    result: list[Tensor] = []
    makers: list[set[int]] = []
    for number, (shadow, _) in enumerate(operands):
        for plane in shadow.planes:
            plane = plane.expand(shape)
            live = set(varying(plane))
            match = next((i for i, other in enumerate(result) if live & set(varying(other))), None)
            if match is None:
                result.append(plane)
                makers.append({number})
                continue
            result[match] = _meet(tracer, result[match], plane)
            makers[match].add(number)
    free = []
    for plane, made_by in zip(result, makers, strict=True):
        own_dims = varying(plane)
        others = [entry for number, entry in enumerate(operands) if number not in made_by]
        fixed = [
            shadow
            for shadow, own in others
            if any(size > 1 for d, size in enumerate(own, len(shape) - len(own)) if d in own_dims)
        ]
        if fixed:
            # Pinned for good: nobody needs to follow them any further.
            positions = all((shadow.planes or shadow.scores) and not shadow.constant for shadow in fixed)
            tracer.pin(plane, _POSITIONS if positions else Reason.FIXED_WIDTH_TENSOR.because())
        else:
            free.append(plane)
    return tuple(free)


def _meet(tracer: Tracer, a: Tensor, b: Tensor) -> Tensor:
    tracer.unite(a, b)
    if len(varying(b)) < len(varying(a)):
        a, b = b, a
    small_a, small_b = torch.broadcast_tensors(core(a), core(b))
    for labels, partner in ((small_a, small_b), (small_b, small_a)):
        alone = (labels != 0) & (partner == 0)
        if bool(alone.any()):
            tracer.table.pin(labels[alone], Reason.PADDED_POSITION.because())
    return compact(a) if not bool((small_a == 0).any()) else torch.where(small_a != 0, small_a, small_b).expand(a.shape)


@rule("pointwise", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "relu6", "elu", "selu", "celu", "softplus",
      "softshrink", "hardshrink", "threshold", "log_sigmoid_forward", "prelu", "_prelu_kernel", "nan_to_num", "lerp",
      "masked_fill", "mish", "logit", "addcmul", "addcdiv", "rsub", "clamp", "where")  # fmt: skip
def pointwise(tracer: Tracer, call: Call) -> Shadow | None:
    """Any operation that torch tags as pointwise."""
    if not isinstance(call.out, Tensor):
        return None
    tensors = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
    operands = [(tracer.shadow(t), _own_sizes(t)) for t in tensors]
    planes = combine(tracer, operands, tuple(call.out.shape))
    rows = _rows(tracer, call, tensors)
    return Shadow(planes, rows=None if rows is None or rows.shape != call.out.shape else rows)


def _own_sizes(tensor: Tensor) -> tuple[int, ...]:
    """The shape, with size 1 where an expanded tensor only repeats itself: there it fits any width."""
    return tuple(1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _rows(tracer: Tracer, call: Call, tensors: Sequence[Tensor]) -> Tensor | None:
    """Rows survive a constant factor, the bias of the layer that they belong to, and sums among themselves."""
    rows = tracer.shadow(tensors[0]).rows
    if rows is None:
        return None
    if call.name in ("mul", "div", "neg"):
        return rows if all(tracer.shadow(t).constant for t in tensors[1:]) else None
    if call.name in ("add", "sub") and len(tensors) == 2:
        other = tracer.shadow(tensors[1]).rows
        if other is not None and torch.equal(torch.unique(core(rows)), torch.unique(core(other))):
            return rows
        families = tracer.registry.families
        owners = {families[int(i)].owner for i in tracer.registry.family_of(core(rows).reshape(-1)[:1])}
        bias = [core(plane).reshape(-1)[:1] for plane in tracer.shadow(tensors[1]).planes]
        added = [families[int(i)] for labels in bias for i in tracer.registry.family_of(labels)]
        if added and all(family.owner in owners and "bias" in family.tensor for family in added):
            return rows
    return None


@rule("glu")
def glu(tracer: Tracer, call: Call) -> Shadow:
    """The halves are multiplied."""
    dim = call.arg(1, "dim", -1) % call.args[0].dim()
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        halves = plane.split(call.out.shape[dim], dim)
        if dim in varying(plane):
            tracer.unite(halves[0], halves[1])
        planes.append(halves[0])
    return Shadow(tuple(planes))
