"""Channel dependencies by label propagation: one shadow execution says which channel every element belongs to."""

from norton_plugin.channels.graph import LabelGraph

__all__ = ["LabelGraph"]
