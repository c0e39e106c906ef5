"""Operations that move or repeat elements: the labels move with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from norton_plugin.channels.label_maps import Shadow, along, compact, core, varying
from norton_plugin.channels.provenance import given_sizes
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.tracer import Tracer
from norton_plugin.channels.widths import Width
from norton_plugin.reasons import Cause, Reason


def _map(tracer: Tracer, call: Call, function: Any) -> Shadow:
    shadow = tracer.shadow(call.args[0])
    rows = None if shadow.rows is None else function(shadow.rows)
    return Shadow(tuple(function(plane) for plane in shadow.planes), shadow.constant, rows)


@rule("permute", "transpose", "t", "unsqueeze", "squeeze", "movedim", "swapaxes", "alias", "detach", "lift_fresh")
def move(tracer: Tracer, call: Call) -> Shadow:
    """Dimensions change places."""
    return _map(tracer, call, lambda plane: call.func(plane, *call.args[1:], **call.kwargs))


@rule("clone", "contiguous", "_to_copy", "native_dropout", "dropout", "_conj", "positive", "fill", "zero", "to")
def same(tracer: Tracer, call: Call) -> Any:
    """Every element stays where it is."""
    shadow = tracer.shadow(call.args[0])
    return [shadow, shadow] if isinstance(call.out, tuple) else shadow


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli")
def like(tracer: Tracer, call: Call) -> Shadow:
    """A constant made to fit a tensor has its channels."""
    return tracer.shadow(call.args[0])


@rule("zeros", "ones", "empty", "rand", "randn", "new_zeros", "new_ones")
def factory(tracer: Tracer, call: Call) -> Shadow:
    """A constant whose sizes were read off a tensor has that tensor's channels."""
    planes = []
    for d, size in enumerate(given_sizes(tracer, call.out.dim()) or []):
        if isinstance(size, Width) and len(size.labels) == call.out.shape[d]:
            view = [1] * call.out.dim()
            view[d] = -1
            planes.append(size.labels.view(view).expand(call.out.shape))
    return Shadow(tuple(planes))


@rule("as_strided")
def as_strided(tracer: Tracer, call: Call) -> Shadow | None:
    """Other strides of the same elements, as pooling to one pixel returns them."""
    if call.out.shape != call.args[0].shape or call.arg(3, "storage_offset"):
        return None
    return tracer.shadow(call.args[0])


@rule("expand")
def expand(tracer: Tracer, call: Call) -> Shadow:
    """Elements are repeated."""
    given = given_sizes(tracer, call.out.dim())
    shadow = _map(tracer, call, lambda plane: plane.expand(call.out.shape))
    if given is not None:
        for d, size in enumerate(given):
            touched = [plane for plane in shadow.planes if d in varying(compact(plane))]
            for plane in touched:
                tracer.check_size(along(plane, d), size)
            if not touched and isinstance(size, Width):
                tracer.pin(size.labels, Reason.FOREIGN_SIZE.because())
    return shadow


@rule("flip")
def flip(tracer: Tracer, call: Call) -> Shadow:
    """Order is reversed, which commutes with removal."""
    return _map(tracer, call, lambda plane: call.func(core(plane), *call.args[1:]).expand(plane.shape))


def fixed_along(tracer: Tracer, call: Call, dims: Sequence[int], why: Cause) -> list[Tensor]:
    """Planes that do not vary along these dimensions; the channels of the others are pinned."""
    kept = []
    for plane in tracer.shadow(call.args[0]).planes:
        if set(varying(plane)) & {d % plane.dim() for d in dims}:
            tracer.pin(plane, why)
        else:
            kept.append(plane)
    return kept


@rule("roll")
def roll(tracer: Tracer, call: Call) -> Shadow:
    """A rotation by a fixed number of places."""
    dims = call.arg(2, "dims", ()) or range(call.args[0].dim())
    cause = Reason.OVER_CHANNELS.because(operation="a rotation by a fixed number of places")
    return Shadow(tuple(fixed_along(tracer, call, dims, cause)))


@rule("constant_pad_nd", "pad")
def pad(tracer: Tracer, call: Call) -> Shadow:
    """Constants are added around: they belong to no channel."""
    return _map(tracer, call, lambda plane: _padded(plane, call.args[1]))


def _padded(plane: Tensor, widths: Sequence[int]) -> Tensor:
    live = set(varying(plane))
    inner, outer = list(widths), []
    for position in range(0, len(widths), 2):
        dim = plane.dim() - 1 - position // 2
        if dim not in live:
            # Labels hold for the whole slab, border included: it vanishes with the channel.
            outer.append((dim, widths[position] + widths[position + 1]))
            inner[position] = inner[position + 1] = 0
    shape = list(plane.shape)
    small = torch.nn.functional.pad(core(plane), inner)
    for dim, extra in outer:
        shape[dim] += extra
    for dim in live:
        shape[dim] = small.shape[dim]
    return small.expand(shape)
