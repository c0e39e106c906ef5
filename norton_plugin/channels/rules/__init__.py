"""What every operation does to the channels of its operands: one file per family, registered by being imported."""

from norton_plugin.channels.rules import elementwise, join, move, norm, part, products, reduce, reshape, spatial

__all__ = ["elementwise", "join", "move", "norm", "part", "products", "reduce", "reshape", "spatial"]
