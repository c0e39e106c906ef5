"""Copies of a convolution's attributes that the module around it keeps, such as mmcv's ``ConvModule``."""

from __future__ import annotations

from torch import nn

_COPIED = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "transposed")


def refresh_copies_(model: nn.Module) -> int:
    """Update copies of a convolution's widths after the convolution was pruned.

    A module counts that has a child ``conv`` and, as plain attributes, all that describes a convolution: heads and
    tools read them from there.

    Args:
        model: Changed in place.

    Returns:
        Modules that held another width.
    """
    renewed = 0
    for module in model.modules():
        conv = dict(module.named_children()).get("conv")
        if conv is None or not all(name in vars(module) for name in _COPIED):
            continue
        widths = {name: getattr(conv, name, vars(module)[name]) for name in ("in_channels", "out_channels")}
        renewed += any(vars(module)[name] != width for name, width in widths.items())
        vars(module).update(widths)
    return renewed
