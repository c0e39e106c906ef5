"""Importances of Torch-Pruning (magnitude, Taylor, Hessian, FPGM ...) as criteria over channel groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.dependency.dependency import Dependency
from torch_pruning.dependency.node import Node

from norton_plugin.blocks import ConvBlock, CPDLinear
from norton_plugin.blocks.convolutions import LAYERS
from norton_plugin.channels.groups import ChannelGroup, Member
from norton_plugin.errors import SurgeryError

_CONVOLUTION, _LINEAR = nn.modules.conv._ConvNd, nn.Linear


def criterion_of(importance: tp.importance.Importance) -> Callable[[ChannelGroup], Tensor]:
    """Make a criterion of an importance.

    The importance is given all channels of a group, numbered as by Torch-Pruning's own graph. Blocks and CPDLinears
    are shown to it as the convolutions and Linear layers they equal, without gradients.

    Args:
        importance: Any importance, or a function of a Torch-Pruning group; what it needs beforehand (gradients, as
            for ``TaylorImportance``) has been computed on the layers that the groups name.

    Returns:
        A function from a group to its scores, (size,); larger is kept longer.
    """

    def criterion(group: ChannelGroup) -> Tensor:
        name = type(importance).__name__
        try:
            scores = importance(torch_pruning_group(group))
        except AttributeError as error:
            if "'NoneType' object has no attribute 'data'" not in str(error):
                raise
            raise SurgeryError(
                f"{name} needs gradients, and a layer of the group of {group.root} has none; call backward() on a "
                "loss of the dense model first (CPDBlocks have no gradient of a dense weight: give a model that is "
                "not decomposed yet)"
            ) from error
        if scores is None:
            raise SurgeryError(f"{name} gives the group of {group.root} no scores: it knows none of its layers")
        return scores

    return criterion


def torch_pruning_group(group: ChannelGroup) -> tp.Group:
    """Describe a group to Torch-Pruning; its root comes first, with all its channels.

    Args:
        group: Members of kinds that Torch-Pruning has no pruning function for are left out.

    Raises:
        SurgeryError: No layer of the group produces its channels.
    """
    if not group.producers:
        raise SurgeryError(f"no layer of the group of {group.root} has filters to score")
    described = tp.Group()
    first = group.producers[0]
    for member in [first, *(m for m in group.members if m is not first)]:
        module = _shown(member.module)
        handler = _handler(module, member)
        if handler is None:
            continue
        node = Node(module, None, member.name)
        pairs = sorted(zip(member.indices, member.roots, strict=True))  # importances sort the indices in place
        described.add_dep(Dependency(handler, handler, node, node), [index for index, _ in pairs])
        described[len(described) - 1].root_idxs = [root for _, root in pairs]
    return described


def _shown(module: Any) -> Any:
    """Return the module itself, or the convolution or Linear layer that a block equals."""
    if isinstance(module, CPDLinear):
        dense: Any = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
    elif isinstance(module, ConvBlock):
        dense = LAYERS[len(module.kernel_size)](
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            groups=module.groups,
            bias=module.bias is not None,
            device="meta",
        )
    else:
        return module
    dense.weight = nn.Parameter(module.weight.detach(), requires_grad=False)
    if module.bias is not None:
        dense.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return dense


def _handler(module: Any, member: Member) -> Callable[..., Any] | None:
    """Return the pruning function by which Torch-Pruning tells what the group takes from a layer."""
    functions = tp.pruner.function
    if isinstance(module, _CONVOLUTION):
        if member.depthwise:
            return functions.prune_depthwise_conv_out_channels
        return functions.prune_conv_in_channels if member.role == "in" else functions.prune_conv_out_channels
    if isinstance(module, _LINEAR):
        return functions.prune_linear_in_channels if member.role == "in" else functions.prune_linear_out_channels
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return functions.prune_batchnorm_out_channels
    if isinstance(module, nn.LayerNorm):
        return functions.prune_layernorm_out_channels
    if isinstance(module, nn.GroupNorm):
        return functions.prune_groupnorm_out_channels
    return None
