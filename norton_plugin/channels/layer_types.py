"""PyTorch's own layers, registered by being imported."""

from __future__ import annotations

from typing import Any

from torch import nn

from norton_plugin.channels.label_maps import ChannelLabels, along, varying
from norton_plugin.channels.layers import CurrentSizes, LayerType, refresh_grouped_, register_layer
from norton_plugin.channels.trace import Trace
from norton_plugin.modules.swap import renew_references_
from norton_plugin.reasons import Reason


def _filter_dim(conv: Any) -> int:
    """Return 1 for a transposed convolution: its weight is (C, N / groups, ...)."""
    return 1 if conv.transposed else 0


def _refresh_conv_(conv: Any, sizes: CurrentSizes) -> None:
    rows, columns = conv.weight.shape[:2]
    if not conv.transposed:
        conv.out_channels = rows
        refresh_grouped_(conv, sizes, columns)
        return
    if conv.groups > 1:
        conv.groups = conv.groups * rows // conv.in_channels
    conv.in_channels, conv.out_channels = rows, columns * conv.groups


def _refresh_conv_alike_(conv: Any, sizes: CurrentSizes) -> None:
    conv.out_channels = conv.weight.shape[0]
    refresh_grouped_(conv, sizes, conv.weight.shape[1])


def _refresh_linear_(linear: Any, sizes: CurrentSizes) -> None:
    linear.out_features, linear.in_features = linear.weight.shape


def _refresh_group_norm_(norm: Any, sizes: CurrentSizes) -> None:
    channels = norm.num_channels if norm.weight is None else len(norm.weight)
    if sizes.whole_groups:
        norm.num_groups = norm.num_groups * channels // norm.num_channels
    norm.num_channels = channels


def _refresh_batch_norm_(norm: Any, sizes: CurrentSizes) -> None:
    tensor = norm.running_mean if norm.weight is None else norm.weight
    if tensor is not None:
        norm.num_features = len(tensor)


def _refresh_layer_norm_(norm: Any, sizes: CurrentSizes) -> None:
    weight = getattr(norm, "weight", None)
    if weight is not None:
        norm.normalized_shape = tuple(weight.shape)
    elif sizes.normalized is not None:
        norm.normalized_shape = (sizes.normalized,)


def _refresh_attention_(attention: Any, sizes: CurrentSizes) -> None:
    # The rows of out_proj are free where nothing is added to its output: its columns tell the width.
    attention.embed_dim = attention.out_proj.weight.shape[1]
    attention.head_dim = attention.embed_dim // attention.num_heads
    if attention.in_proj_weight is not None:
        attention.kdim = attention.vdim = attention.embed_dim
    else:
        attention.kdim, attention.vdim = attention.k_proj_weight.shape[1], attention.v_proj_weight.shape[1]


def _couple_attention(trace: Trace, attention: Any) -> None:
    """Unite embedding and projections: nn.MultiheadAttention takes its inner width from the width of its input."""
    if attention.in_proj_weight is None:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
        rows = [along(trace.labels_of(weight).maps[0], 0) for weight in weights]
        columns = along(trace.labels_of(weights[0]).maps[1], 1)
    else:
        maps = trace.labels_of(attention.in_proj_weight).maps
        rows = list(along(maps[0], 0).view(3, -1))
        columns = along(maps[1], 1)
    for row in rows:
        trace.unite(row, columns)
    heads = columns.view(attention.num_heads, -1)
    trace.compensate(rows[0], heads[0], -0.5)
    trace.unite(heads, heads[:1])


def _refresh_recurrent_(recurrent: Any, sizes: CurrentSizes) -> None:
    recurrent.input_size = recurrent.get_parameter("weight_ih_l0").shape[1]
    renew_references_(recurrent)


def _pin_recurrent(trace: Trace, recurrent: nn.RNNBase) -> None:
    """Pin the state of a recurrent layer; the width that its first layer reads may shrink."""
    for name, parameter in recurrent.named_parameters(recurse=False):
        for label_map in trace.axes.labels.get(parameter, ChannelLabels()).maps:
            if varying(label_map) != [1] or not name.startswith("weight_ih_l0"):
                trace.pin(label_map, Reason.RECURRENT.because())


def _refresh_recurrent_cell_(cell: Any, sizes: CurrentSizes) -> None:
    cell.input_size = cell.weight_ih.shape[1]


def _refresh_embedding_(embedding: Any, sizes: CurrentSizes) -> None:
    embedding.embedding_dim = embedding.weight.shape[1]


def _refresh_bilinear_(layer: Any, sizes: CurrentSizes) -> None:
    layer.out_features, layer.in1_features, layer.in2_features = layer.weight.shape


def _refresh_prelu_(prelu: Any, sizes: CurrentSizes) -> None:
    prelu.num_parameters = prelu.weight.numel()


class _ConvolutionAlike(nn.Module):
    """Stands for layers of others that keep all that a 2-D convolution keeps, such as deformable convolutions."""


def _is_convolution_alike(module: object) -> bool:
    parameters = getattr(module, "_parameters", None)  # of a script it is a mapping of another kind
    weight = parameters.get("weight") if isinstance(parameters, dict) else None
    if weight is None or weight.dim() != 4 or getattr(module, "transposed", False):
        return False
    sizes = [getattr(module, name, None) for name in ("out_channels", "in_channels", "groups")]
    return all(type(size) is int for size in sizes) and getattr(module, "kernel_size", None) == tuple(weight.shape[2:])


for _layer in (
    LayerType(
        nn.modules.conv._ConvNd, produces=True, channel_dims=(0, 1), filter_dim=_filter_dim, refresh=_refresh_conv_
    ),
    LayerType(
        _ConvolutionAlike,
        produces=True,
        channel_dims=(0, 1),
        refresh=_refresh_conv_alike_,
        recognised_by=_is_convolution_alike,
    ),
    LayerType(nn.Linear, produces=True, refresh=_refresh_linear_),
    LayerType(nn.Bilinear, produces=True, refresh=_refresh_bilinear_),
    LayerType(nn.GroupNorm, refresh=_refresh_group_norm_),
    LayerType(nn.modules.batchnorm._NormBase, refresh=_refresh_batch_norm_),
    LayerType(nn.LayerNorm, refresh=_refresh_layer_norm_, recognised_by="normalized_shape"),
    LayerType(nn.MultiheadAttention, refresh=_refresh_attention_, before_run=_couple_attention),
    LayerType(nn.RNNBase, refresh=_refresh_recurrent_, before_run=_pin_recurrent),
    LayerType(nn.RNNCellBase, refresh=_refresh_recurrent_cell_),
    LayerType(nn.Embedding, refresh=_refresh_embedding_),
    LayerType(nn.PReLU, refresh=_refresh_prelu_),
):
    register_layer(_layer)
