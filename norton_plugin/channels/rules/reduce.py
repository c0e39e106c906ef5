"""Operations over whole dimensions: sums, means, softmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from norton_plugin.channels.label_maps import Shadow, varying
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.rules.elementwise import pointwise
from norton_plugin.channels.tracer import Tracer
from norton_plugin.reasons import Reason


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
    kept: list[Tensor] = []
    consumed: list[Tensor] = []
    for plane in tracer.shadow(x).planes:
        (consumed if set(varying(plane)) & set(dims) else kept).append(plane)
    if call.name in ("mean", "sum", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm"):
        tracer.step("reduce", consumed)
    elif call.name in ("amax", "amin", "max", "min") and x.dim() > 3 and dims == [1]:
        # Attention to places (CBAM) takes the largest channel of a map. Where its number is asked for, all stay.
        tracer.step("reduce", consumed)
        for numbers in outputs[1:]:
            tracer.numbered[numbers] = tuple(consumed)
    else:
        for plane in consumed:
            tracer.pin(plane, Reason.TAKEN_OVER_CHANNELS.because(operation=call.name))
    planes = []
    for plane in kept:
        for d in sorted(dims, reverse=True):
            plane = plane.narrow(d, 0, 1) if outputs[0].dim() == x.dim() else plane.select(d, 0)
        planes.append(plane.expand(outputs[0].shape))
    rows = tracer.shadow(x).rows if call.name in ("mean", "sum", "amax", "max") else None
    if rows is not None and not set(varying(rows)) & set(dims):
        for d in sorted(dims, reverse=True):
            rows = rows.narrow(d, 0, 1) if outputs[0].dim() == x.dim() else rows.select(d, 0)
    else:
        rows = None
    return [Shadow(tuple(planes), rows=rows)] * len(outputs)


@rule("_softmax", "_log_softmax", "softmax", "cumsum", "cumprod", "sort", "argsort", "_safe_softmax")
def along_dimension(tracer: Tracer, call: Call) -> Any:
    """Mixes positions of one dimension and keeps the shape."""
    dim = call.arg(1, "dim", -1)
    dim = (dim if isinstance(dim, int) else -1) % call.args[0].dim()
    planes = []
    own = tracer.shadow(call.args[0]).planes
    # Attention of channels to channels (XCiT): a channel that is gone gets none of it.
    crossed = "softmax" in call.name and any(varying(plane) and dim not in varying(plane) for plane in own)
    for plane in own:
        if dim in varying(plane) and crossed:
            tracer.step("kept", [plane])
            planes.append(plane)
        elif dim in varying(plane):
            tracer.pin(plane, Reason.TAKEN_OVER_CHANNELS.because(operation=call.name.strip("_")))
        else:
            planes.append(plane)
    shadow = Shadow(tuple(planes))
    return [shadow] * len(call.out) if isinstance(call.out, tuple) else shadow
