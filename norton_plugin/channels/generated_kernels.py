"""Layers that compute two kernels for each region by one Linear layer: mmdet's ``DynamicConv`` (Sparse R-CNN).

Its outputs hold a kernel (in, feat) and after it one (feat, out), both flat. A channel between the two kernels is a
column of the first and a row of the second: all rows of the Linear layer that compute either go with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from norton_plugin.channels.label_maps import ChannelLabels, along, spread
from norton_plugin.channels.layers import LayerType, register_layer

if TYPE_CHECKING:
    from norton_plugin.channels.trace import Trace

_SIZES = ("in_channels", "feat_channels", "out_channels", "num_params_in", "num_params_out")


class _KernelGenerator(nn.Module):
    """Stands for mmdet's ``DynamicConv`` and layers that hold the same."""


def generates_kernels(module: object) -> bool:
    """Tell whether a module holds a Linear layer whose outputs are two kernels, one after the other."""
    linear = getattr(module, "dynamic_layer", None)
    sizes = [getattr(module, name, None) for name in _SIZES]
    if not isinstance(linear, nn.Linear) or not all(type(size) is int for size in sizes):
        return False
    inputs, inner, outputs, first, second = (int(size or 0) for size in sizes)
    return (inputs * inner, inner * outputs, first + second) == (first, second, linear.out_features)


def _couple(trace: Trace, module: Any) -> None:
    """Give all rows that compute a channel between the kernels one label, for the first and for the second kernel."""
    for tensor in (module.dynamic_layer.weight, module.dynamic_layer.bias):
        labels = None if tensor is None else trace.axes.labels.get(tensor)
        if labels is None:
            continue
        rows = along(labels.maps[0], 0)
        channels = rows[: module.feat_channels]
        alike = torch.cat([channels.repeat(module.in_channels), channels.repeat_interleave(module.out_channels)])
        trace.unite(rows, alike)
        trace.axes.labels[tensor] = ChannelLabels((spread(alike, tensor.shape, 0), *labels.maps[1:]))


KERNEL_GENERATOR = register_layer(
    LayerType(_KernelGenerator, before_run=_couple, recognised_by=generates_kernels),
)
