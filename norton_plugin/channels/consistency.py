"""Whether the sizes that standard layers say they have are those of their tensors.

A layer computes with its tensors, and with its attributes only here and there: code that reads ``in_channels`` to build
something else, to print it or to export it would meet a number that nothing has tested. So all of them are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from norton_plugin.errors import SurgeryError

Sizes = tuple[str, Any, Any]


def disagreements(model: nn.Module) -> set[str]:
    """Return what standard layers say of their sizes and their tensors do not bear out, as sentences.

    Args:
        model: Its convolutions, Linear layers, norms, embeddings, attention, recurrent layers and PReLUs are looked at.
    """
    found = set()
    for name, module in model.named_modules():
        for attribute, said, borne_out in _sizes(module):
            if said != borne_out:
                found.add(f"{name or type(module).__name__}.{attribute} is {said}, its tensors say {borne_out}")
    return found


def require_agreement(model: nn.Module, known: set[str]) -> None:
    """Check that surgery made no layer disagree with its tensors.

    Args:
        model: After surgery.
        known: ``disagreements`` of the model before it.

    Raises:
        SurgeryError: A layer disagrees that did not before; the first is named.
    """
    new = sorted(disagreements(model) - known)
    if new:
        raise SurgeryError(f"an attribute does not agree with the tensors: {new[0]}")


def _sizes(module: nn.Module) -> Iterator[Sizes]:
    """Yield (attribute, what it says, what the tensors say) of one module; nothing of kinds that are not known."""
    for kind, sizes in _KINDS.items():
        if isinstance(module, kind):
            yield from sizes(module)
            return


def _of_convolution(conv: Any) -> Iterator[Sizes]:
    weight = _tensor(conv, "weight")
    if weight is None:
        return
    rows, columns = weight.shape[:2]
    if conv.transposed:
        yield "in_channels", conv.in_channels, rows
        yield "out_channels", conv.out_channels, columns * conv.groups
    else:
        yield "out_channels", conv.out_channels, rows
        yield "in_channels", conv.in_channels, columns * conv.groups
        yield "groups", conv.groups if rows % conv.groups == 0 else -1, conv.groups
    yield "kernel_size", tuple(conv.kernel_size), tuple(weight.shape[2:])
    yield from _of_bias(conv, "out_channels")


def _of_linear(linear: Any) -> Iterator[Sizes]:
    weight = _tensor(linear, "weight")
    if weight is not None:
        yield "out_features", linear.out_features, weight.shape[0]
        yield "in_features", linear.in_features, weight.shape[1]
        yield from _of_bias(linear, "out_features")


def _of_bias(layer: Any, width: str) -> Iterator[Sizes]:
    bias = _tensor(layer, "bias")
    if bias is not None:
        yield f"{width} (by bias)", getattr(layer, width), len(bias)


def _of_batch_norm(norm: Any) -> Iterator[Sizes]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = _tensor(norm, name)
        if tensor is not None:
            yield f"num_features (by {name})", norm.num_features, len(tensor)


def _of_group_norm(norm: Any) -> Iterator[Sizes]:
    weight = _tensor(norm, "weight")
    if weight is not None:
        yield "num_channels", norm.num_channels, len(weight)
    yield "num_groups", norm.num_groups if norm.num_channels % norm.num_groups == 0 else -1, norm.num_groups


def _of_layer_norm(norm: Any) -> Iterator[Sizes]:
    weight = _tensor(norm, "weight")
    if weight is not None:
        yield "normalized_shape", tuple(norm.normalized_shape), tuple(weight.shape)


def _of_attention(attention: Any) -> Iterator[Sizes]:
    own, projected = _tensor(attention, "in_proj_weight"), attention.out_proj.weight
    yield "embed_dim", attention.embed_dim, projected.shape[1]
    yield "head_dim", attention.head_dim * attention.num_heads, projected.shape[1]
    if own is not None:
        yield "embed_dim (by in_proj_weight)", 3 * attention.embed_dim, own.shape[0]
        yield "kdim", attention.kdim, own.shape[1]
        yield "vdim", attention.vdim, own.shape[1]
    else:
        yield "kdim", attention.kdim, attention.k_proj_weight.shape[1]
        yield "vdim", attention.vdim, attention.v_proj_weight.shape[1]


def _of_recurrent(layer: Any) -> Iterator[Sizes]:
    yield "input_size", layer.input_size, layer.get_parameter("weight_ih_l0").shape[1]


def _of_recurrent_cell(cell: Any) -> Iterator[Sizes]:
    yield "input_size", cell.input_size, cell.weight_ih.shape[1]


def _of_embedding(embedding: Any) -> Iterator[Sizes]:
    weight = _tensor(embedding, "weight")
    if weight is not None:
        yield "num_embeddings", embedding.num_embeddings, weight.shape[0]
        yield "embedding_dim", embedding.embedding_dim, weight.shape[1]


def _of_prelu(prelu: Any) -> Iterator[Sizes]:
    yield "num_parameters", prelu.num_parameters, prelu.weight.numel()


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer of the module's own; what a parametrization or a hook computes does not count."""
    found = module._parameters.get(name, module._buffers.get(name))
    return None if isinstance(found, UninitializedParameter | UninitializedBuffer) else found


_KINDS: dict[type[nn.Module], Any] = {
    nn.modules.conv._ConvNd: _of_convolution,
    nn.Linear: _of_linear,
    nn.modules.batchnorm._NormBase: _of_batch_norm,
    nn.GroupNorm: _of_group_norm,
    nn.LayerNorm: _of_layer_norm,
    nn.MultiheadAttention: _of_attention,
    nn.RNNBase: _of_recurrent,
    nn.RNNCellBase: _of_recurrent_cell,
    nn.Embedding: _of_embedding,
    nn.PReLU: _of_prelu,
}
