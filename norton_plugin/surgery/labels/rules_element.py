"""Operations that work element by element, over windows of the map, or over whole dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from norton_plugin.surgery.labels.planes import Shadow, along, compact, core, varying
from norton_plugin.surgery.labels.rules_move import united
from norton_plugin.surgery.labels.tracer import Call, Tracer, rule

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
        live = varying(plane)
        others = [own for number, (_, own) in enumerate(operands) if number not in made_by]
        if any(size > 1 for own in others for d, size in enumerate(own, len(shape) - len(own)) if d in live):
            # Pinned for good: nobody needs to follow them any further.
            tracer.pin(plane, "it meets a tensor of fixed width")
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
            tracer.table.pin(labels[alone], "it meets a padded position of fixed width")
    return compact(a) if not bool((small_a == 0).any()) else torch.where(small_a != 0, small_a, small_b).expand(a.shape)


@rule("pointwise", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "relu6", "elu", "selu", "celu", "softplus",
      "softshrink", "hardshrink", "threshold", "log_sigmoid_forward", "prelu", "_prelu_kernel", "nan_to_num", "lerp",
      "masked_fill", "mish", "logit", "addcmul", "addcdiv", "rsub", "clamp", "where")  # fmt: skip
def pointwise(tracer: Tracer, call: Call) -> Shadow | None:
    """Any operation that torch tags as pointwise."""
    if not isinstance(call.out, Tensor):
        return None
    tensors = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
    operands = [(tracer.shadow(t), tuple(t.shape)) for t in tensors]
    planes = combine(tracer, operands, tuple(call.out.shape))
    multiple = call.name in ("mul", "div", "neg") and len(tensors) == 1
    return Shadow(planes, rows=operands[0][0].rows if multiple else None)


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


def _dims(call: Call, position: int, ndim: int) -> list[int]:
    dims = call.arg(position, "dim")
    if dims is None:
        return list(range(ndim))
    dims = [dims] if isinstance(dims, int) else list(dims)
    return [d % ndim for d in dims] or list(range(ndim))


@rule("mean", "sum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "amax", "amin", "max", "min",
      "argmax", "argmin", "logsumexp", "prod", "any", "all")  # fmt: skip
def reduce(tracer: Tracer, call: Call) -> Any:
    """Dimensions vanish. Sums, means, variances and norms over channels go on over the kept ones."""
    x = call.args[0]
    dims = _dims(call, 2 if call.name in ("linalg_vector_norm", "norm") else 1, x.dim())
    outputs = call.out if isinstance(call.out, tuple) else [call.out]
    if call.func._overloadname in ("default", "other") and call.name in ("max", "min") and len(call.args) > 1:
        return pointwise(tracer, call)
    kept, consumed = [], []
    for plane in tracer.shadow(x).planes:
        (consumed if set(varying(plane)) & set(dims) else kept).append(plane)
    if call.name in ("mean", "sum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm"):
        tracer.step("reduce", consumed)
    else:
        for plane in consumed:
            tracer.pin(plane, f"{call.name} is taken over its channels")
    planes = []
    for plane in kept:
        for d in sorted(dims, reverse=True):
            plane = plane.narrow(d, 0, 1) if outputs[0].dim() == x.dim() else plane.select(d, 0)
        planes.append(plane.expand(outputs[0].shape))
    return [Shadow(tuple(planes))] * len(outputs)


@rule("_softmax", "_log_softmax", "softmax", "cumsum", "cumprod", "sort", "argsort", "_safe_softmax")
def along_dimension(tracer: Tracer, call: Call) -> Any:
    """Mixes positions of one dimension and keeps the shape."""
    dim = call.arg(1, "dim", -1)
    dim = (dim if isinstance(dim, int) else -1) % call.args[0].dim()
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if dim in varying(plane):
            tracer.pin(plane, f"{call.name.strip('_')} is taken over its channels")
        else:
            planes.append(plane)
    shadow = Shadow(tuple(planes))
    return [shadow] * len(call.out) if isinstance(call.out, tuple) else shadow


def _over_map(tracer: Tracer, call: Call, ndim: int) -> Any:
    """Planes of an operation over the last dimensions, which must not tell channels apart."""
    outputs = call.out if isinstance(call.out, tuple) else [call.out]
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if any(d >= plane.dim() - ndim for d in varying(plane)):
            tracer.pin(plane, f"{call.name} runs over its channels")
            continue
        for d in range(plane.dim() - ndim, plane.dim()):
            plane = plane.narrow(d, 0, 1)
        planes.append(plane.expand(outputs[0].shape))
    return [Shadow(tuple(planes))] * len(outputs)


@rule("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "upsample_nearest1d",
      "upsample_linear1d", "reflection_pad1d", "replication_pad1d", "max_pool1d_with_indices")  # fmt: skip
def over_line(tracer: Tracer, call: Call) -> Any:
    """Windows over the last dimension."""
    return _over_map(tracer, call, 1)


@rule("max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
      "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "reflection_pad2d",
      "replication_pad2d", "grid_sampler_2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
      "_upsample_nearest_exact2d", "mkldnn_max_pool2d", "cudnn_grid_sampler")  # fmt: skip
def over_map(tracer: Tracer, call: Call) -> Any:
    """Windows over the last two dimensions."""
    return _over_map(tracer, call, 2)


@rule("max_pool3d", "max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d",
      "upsample_nearest3d", "upsample_trilinear3d", "replication_pad3d", "reflection_pad3d")  # fmt: skip
def over_volume(tracer: Tracer, call: Call) -> Any:
    """Windows over the last three dimensions."""
    return _over_map(tracer, call, 3)


@rule("roi_align", "roi_pool")
def regions(tracer: Tracer, call: Call) -> Any:
    """Regions of a map: (B, C, H, W) to (K, C, h, w)."""
    outputs = call.out if isinstance(call.out, tuple) else [call.out]
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if varying(plane) == [1]:
            planes.append(along(plane, 1).view(1, -1, 1, 1).expand(outputs[0].shape))
        else:
            tracer.pin(plane, "regions are cut out along its channels")
    return [Shadow(tuple(planes))] * len(outputs)


@rule("im2col")
def im2col(tracer: Tracer, call: Call) -> Shadow:
    """(B, C, H, W) to (B, C * Kh * Kw, L)."""
    kernel = math.prod(call.args[1])
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if varying(plane) == [1]:
            planes.append(along(plane, 1).repeat_interleave(kernel).view(1, -1, 1).expand(call.out.shape))
        else:
            tracer.pin(plane, "windows slide over its channels")
    return Shadow(tuple(planes))


@rule("col2im")
def col2im(tracer: Tracer, call: Call) -> Shadow:
    """(B, C * Kh * Kw, L) back to (B, C, H, W)."""
    kernel = math.prod(call.args[2])
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if varying(plane) == [plane.dim() - 2]:
            folded = united(tracer, along(plane, -2).view(-1, kernel), [1])
            planes.append(folded[:, 0].view(-1, 1, 1).expand(call.out.shape))
        else:
            tracer.pin(plane, "windows slide over its channels")
    return Shadow(tuple(planes))


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(tracer: Tracer, call: Call) -> Shadow:
    """Channels to space and back: the r * r channels of one pixel block go together."""
    area = call.args[1] ** 2
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if varying(plane) != [plane.dim() - 3]:
            tracer.pin(plane, "pixels are shuffled along its channels")
            continue
        vector = along(plane, -3)
        if call.name == "pixel_shuffle":
            vector = united(tracer, vector.view(-1, area), [1])[:, 0]
        else:
            vector = vector.repeat_interleave(area)
        planes.append(vector.view(-1, 1, 1).expand(call.out.shape))
    return Shadow(tuple(planes))


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
    return [Shadow(combine(tracer, operands, shape))] + [Shadow()] * (len(call.out) - 1)


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
    return [Shadow(combine(tracer, operands, tuple(x.shape)))] + [Shadow()] * (len(call.out) - 1)


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
