"""Operations over windows of the map: pooling, resizing, unfolding."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from norton_plugin.channels.label_maps import ChannelLabels, along, varying
from norton_plugin.channels.operations import register_rule
from norton_plugin.channels.records import Call
from norton_plugin.channels.rules.reshape import united
from norton_plugin.channels.trace import Trace
from norton_plugin.reasons import Cause, Reason


def _windowed(trace: Trace, call: Call, ndim: int) -> Any:
    """Return the labels after an operation over the last ``ndim`` dimensions, whose channels must stay."""
    outputs = call.out if isinstance(call.out, tuple) else [call.out]
    maps = []
    for label_map in trace.labels_of(call.args[0]).maps:
        if any(d >= label_map.dim() - ndim for d in varying(label_map)):
            trace.pin(label_map, Reason.OVER_CHANNELS.because(operation=call.name))
            continue
        for d in range(label_map.dim() - ndim, label_map.dim()):
            label_map = label_map.narrow(d, 0, 1)
        maps.append(label_map.expand(outputs[0].shape))
    return [ChannelLabels(tuple(maps))] * len(outputs)


@register_rule("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "upsample_nearest1d",
               "upsample_linear1d", "reflection_pad1d", "replication_pad1d", "max_pool1d_with_indices")  # fmt: skip
def over_line(trace: Trace, call: Call) -> Any:
    """Slide windows over the last dimension."""
    return _windowed(trace, call, 1)


@register_rule("max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
               "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
               "reflection_pad2d", "replication_pad2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
               "_upsample_nearest_exact2d", "mkldnn_max_pool2d")  # fmt: skip
def over_map(trace: Trace, call: Call) -> Any:
    """Slide windows over the last two dimensions."""
    return _windowed(trace, call, 2)


@register_rule("max_pool3d", "max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d", "adaptive_max_pool3d",
               "upsample_nearest3d", "upsample_trilinear3d", "replication_pad3d", "reflection_pad3d")  # fmt: skip
def over_volume(trace: Trace, call: Call) -> Any:
    """Slide windows over the last three dimensions."""
    return _windowed(trace, call, 3)


@register_rule("grid_sampler_2d", "cudnn_grid_sampler")
def sampled(trace: Trace, call: Call) -> Any:
    """Read a map at places (B, h, w, 2) that another tensor says: whatever computed them numbers places, and stays."""
    trace.pin_places(call.args[1])
    return _windowed(trace, call, 2)


def _vectors(trace: Trace, call: Call, dim: int, reason: Cause) -> list[Tensor]:
    """Return the labels along a dimension of all maps that vary along it alone; pin the channels of the others."""
    vectors = []
    for label_map in trace.labels_of(call.args[0]).maps:
        if varying(label_map) == [dim % label_map.dim()]:
            vectors.append(along(label_map, dim))
        else:
            trace.pin(label_map, reason)
    return vectors


@register_rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(trace: Trace, call: Call) -> Any:
    """Pool regions of a map: (B, C, H, W) to (K, C, h, w)."""
    outputs = call.out if isinstance(call.out, tuple) else [call.out]
    vectors = _vectors(trace, call, 1, Reason.OVER_CHANNELS.because(operation="region pooling"))
    maps = tuple(vector.view(1, -1, 1, 1).expand(outputs[0].shape) for vector in vectors)
    return [ChannelLabels(maps)] * len(outputs)


@register_rule("im2col")
def im2col(trace: Trace, call: Call) -> ChannelLabels:
    """Unfold (B, C, H, W) to (B, C * Kh * Kw, L)."""
    kernel = math.prod(call.args[1])
    vectors = _vectors(trace, call, 1, Reason.OVER_CHANNELS.because(operation="a sliding window"))
    repeated = [vector.repeat_interleave(kernel) for vector in vectors]
    return ChannelLabels(tuple(vector.view(1, -1, 1).expand(call.out.shape) for vector in repeated))


@register_rule("col2im")
def col2im(trace: Trace, call: Call) -> ChannelLabels:
    """Fold (B, C * Kh * Kw, L) back to (B, C, H, W)."""
    kernel = math.prod(call.args[2])
    vectors = _vectors(trace, call, -2, Reason.OVER_CHANNELS.because(operation="a sliding window"))
    folded = [united(trace, vector.view(-1, kernel), [1])[:, 0] for vector in vectors]
    return ChannelLabels(tuple(vector.view(-1, 1, 1).expand(call.out.shape) for vector in folded))


_SHUFFLED = Reason.OVER_CHANNELS.because(operation="pixel shuffling")


@register_rule("pixel_shuffle")
def pixel_shuffle(trace: Trace, call: Call) -> ChannelLabels:
    """Move channels to space: the r * r channels of one block of pixels are removed together."""
    area = call.args[1] ** 2
    vectors = [united(trace, v.view(-1, area), [1])[:, 0] for v in _vectors(trace, call, -3, _SHUFFLED)]
    return ChannelLabels(tuple(vector.view(-1, 1, 1).expand(call.out.shape) for vector in vectors))


@register_rule("pixel_unshuffle")
def pixel_unshuffle(trace: Trace, call: Call) -> ChannelLabels:
    """Move space to channels: each channel becomes r * r, which are removed together."""
    area = call.args[1] ** 2
    vectors = [vector.repeat_interleave(area) for vector in _vectors(trace, call, -3, _SHUFFLED)]
    return ChannelLabels(tuple(vector.view(-1, 1, 1).expand(call.out.shape) for vector in vectors))
