"""A BatchNorm's arithmetic in the weights of the layer before it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from norton_plugin.deploy.lowering import flushed

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a BatchNorm, a frozen one included (torchvision's and timm's are no subclasses)."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module).__name__.startswith("FrozenBatchNorm")


def rest_of(norm: nn.Module) -> nn.Module:
    """Return what stays of a norm when its arithmetic is gone: the activation that timm puts into some."""
    children = list(norm.children())
    return (nn.Sequential(*children) if children else nn.Identity()).train(norm.training)


def unfoldable(layer: nn.Module, norm: Any, *, reordered: bool = False) -> str | None:
    """Say why a norm's arithmetic cannot be put into a layer, whatever the model; None where it can.

    Args:
        layer: One of ``LAYERS``.
        norm: See ``is_norm``.
        reordered: The norm sees the outputs in another order, or some of them.
    """
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if layer._parameters.get("weight") is None:
        return "the weight of the layer before it is computed in every call"
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:
        return "the layer before it is a transposed convolution in groups"
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if len(norm.running_mean) != outputs and not reordered:
        return f"it counts {len(norm.running_mean)} channels where the layer before it has {outputs} outputs"
    return None


@torch.no_grad()
def folded(layer: nn.Module, norm: Any, index: Tensor | None = None) -> nn.Module:
    """Return a copy of a layer that computes what the norm makes of its outputs; computed in double precision.

    Args:
        layer: One of ``LAYERS``; left as it is.
        norm: In evaluation mode; see ``is_norm``.
        index: (N,) int64, the output of the layer that the norm sees at each place, where it sees them in another order
            (``lowering.SelectChannels``). Outputs that it does not see become zero.
    """
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None  # noqa: S101  # see `unfoldable`
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    if index is not None:
        places = weight.shape[0]
        mean, gain, shift = (row.new_zeros(places).index_copy(0, index, row) for row in (mean, gain, shift))
        variance = variance.new_ones(places).index_copy(0, index, variance)
    given = (weight.double(), None if bias is None else bias.double(), mean, variance, norm.eps, gain, shift)
    if isinstance(layer, nn.Linear):
        new_weight, new_bias = fuse_linear_bn_weights(*given)
    else:
        new_weight, new_bias = fuse_conv_bn_weights(*given, transpose=isinstance(layer, _TRANSPOSED))
    return _with_weights(layer, weight=flushed(new_weight.to(weight)), bias=new_bias.to(weight))


def _with_weights(layer: nn.Module, **tensors: Tensor) -> nn.Module:
    """Return a shallow copy of a layer with parameters of its own and without hooks."""
    new = copy.copy(layer)
    new._parameters = dict(layer._parameters)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        setattr(new, hooks, type(getattr(layer, hooks))())
    for name, tensor in tensors.items():
        new._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    return new
