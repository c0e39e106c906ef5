"""Upsampling whose kernels a convolution computes for each pixel: mmcv's ``CARAFEPack``.

Outputs of that convolution are taps of kernels, numbered by their places: they are no channels, and stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from norton_plugin.channels.label_maps import varying
from norton_plugin.channels.layers import LayerType, register_layer
from norton_plugin.reasons import Reason

if TYPE_CHECKING:
    from norton_plugin.channels.trace import Trace


class _Reassembly(nn.Module):
    """Stands for mmcv's ``CARAFEPack`` and layers that hold the same."""


def reassembles(module: object) -> bool:
    """Tell whether a module holds a convolution whose outputs are all taps of the kernels of a larger map."""
    encoder = getattr(module, "content_encoder", None)
    sizes = [getattr(module, name, None) for name in ("up_kernel", "up_group", "scale_factor")]
    if not isinstance(encoder, nn.Conv2d) or not all(type(size) is int for size in sizes):
        return False
    kernel, groups, scale = (int(size or 0) for size in sizes)
    return encoder.out_channels == kernel**2 * groups * scale**2


def _pin_taps(trace: Trace, module: Any) -> None:
    for label_map in trace.labels_of(module.content_encoder.weight).maps:
        if varying(label_map) == [0]:
            trace.pin(label_map, Reason.POSITIONS_OR_HEADS.because())


REASSEMBLY = register_layer(LayerType(_Reassembly, before_run=_pin_taps, recognised_by=reassembles))
