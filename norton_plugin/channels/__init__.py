"""Which channels of a model belong together, found by following labels through one run: for any PyTorch model.

    from norton_plugin.channels import ChannelGraph

    graph = ChannelGraph(model, example)
    for group in graph.groups():
        print(group.root, group.size, group.blocked)
    graph.prune(root, indices)

A user's own operators and layers are made known by ``register_rule`` and ``register_layer``.
"""

from norton_plugin.channels.graph import ChannelGraph
from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.channels.label_maps import ChannelLabels
from norton_plugin.channels.layers import CurrentSizes, DenseEquivalent, LayerType, refresh_grouped_, register_layer
from norton_plugin.channels.operations import Number, declare, register_rule

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "ChannelLabels",
    "CurrentSizes",
    "DenseEquivalent",
    "LayerType",
    "Member",
    "Number",
    "declare",
    "refresh_grouped_",
    "register_layer",
    "register_rule",
]
