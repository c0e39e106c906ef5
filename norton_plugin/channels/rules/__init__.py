"""What every operation does to the channels of its operands: one file per family, registered by being imported."""

from norton_plugin.channels.rules import (
    attention,
    bilinear,
    convolution,
    deformable,
    elementwise,
    fourier,
    join,
    matrices,
    move,
    norm,
    part,
    reduce,
    reshape,
    spatial,
)

__all__ = [
    "attention",
    "bilinear",
    "convolution",
    "deformable",
    "elementwise",
    "fourier",
    "join",
    "matrices",
    "move",
    "norm",
    "part",
    "reduce",
    "reshape",
    "spatial",
]
