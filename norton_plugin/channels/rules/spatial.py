"""Operations over windows of the map: pooling, resizing, unfolding."""

from __future__ import annotations

import math
from typing import Any

from norton_plugin.channels.label_maps import Shadow, along, varying
from norton_plugin.channels.records import Call, rule
from norton_plugin.channels.rules.reshape import united
from norton_plugin.channels.tracer import Tracer
from norton_plugin.reasons import Reason


def _over_map(tracer: Tracer, call: Call, ndim: int) -> Any:
    """Planes of an operation over the last dimensions, which must not tell channels apart."""
    outputs = call.out if isinstance(call.out, tuple) else [call.out]
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if any(d >= plane.dim() - ndim for d in varying(plane)):
            tracer.pin(plane, Reason.OVER_CHANNELS.because(operation=call.name))
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
            tracer.pin(plane, Reason.OVER_CHANNELS.because(operation="region pooling"))
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
            tracer.pin(plane, Reason.OVER_CHANNELS.because(operation="a sliding window"))
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
            tracer.pin(plane, Reason.OVER_CHANNELS.because(operation="a sliding window"))
    return Shadow(tuple(planes))


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(tracer: Tracer, call: Call) -> Shadow:
    """Channels to space and back: the r * r channels of one pixel block go together."""
    area = call.args[1] ** 2
    planes = []
    for plane in tracer.shadow(call.args[0]).planes:
        if varying(plane) != [plane.dim() - 3]:
            tracer.pin(plane, Reason.OVER_CHANNELS.because(operation="pixel shuffling"))
            continue
        vector = along(plane, -3)
        if call.name == "pixel_shuffle":
            vector = united(tracer, vector.view(-1, area), [1])[:, 0]
        else:
            vector = vector.repeat_interleave(area)
        planes.append(vector.view(-1, 1, 1).expand(call.out.shape))
    return Shadow(tuple(planes))
