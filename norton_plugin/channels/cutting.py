"""Takes positions out of tensors, and tells modules their new sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.channels.axes import Family, Place, Registry
from norton_plugin.channels.records import Rescale
from norton_plugin.channels.tracer import Tracer
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.swap import renew_references_


def cut_(families: Iterable[Family], alive: Tensor, removed: Tensor) -> list[tuple[nn.Module, int, int]]:
    """Selects the positions that stay in every tensor concerned.

    Args:
        families: All families with a label among ``removed``.
        alive: (L,) bool, labels still in the model.
        removed: (L,) bool, labels that go now.

    Returns:
        (module, old size, new size) of every dimension cut.

    Raises:
        SurgeryError: A tensor would lose all its positions, or is not as large as it should be; nothing is changed.
    """
    planned: list[tuple[Place, Tensor]] = []
    for family in families:
        own = slice(family.base, family.base + family.size)
        before = alive[own]
        keep = torch.nonzero(~removed[own][before]).reshape(-1)
        if keep.numel() == 0:
            raise SurgeryError(f"{family.name}.{family.tensor} would lose all {int(before.sum())} of its channels")
        for place in family.places:
            tensor = getattr(place.module, place.tensor)
            if tensor.shape[place.axis] != int(before.sum()):
                raise SurgeryError(
                    f"{family.name}.{family.tensor} has {tensor.shape[place.axis]} positions along dimension "
                    f"{place.axis}, expected {int(before.sum())}; it was changed since the trace: trace the model again"
                )
            planned.append((place, keep))
    changed = []
    # Tensors that several modules share are cut once; the old ones are held so that no identity is given away twice.
    shared: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
    for place, keep in planned:
        old = getattr(place.module, place.tensor)
        key = (id(old), place.axis, tuple(keep.tolist()))
        if key not in shared:
            shared[key] = old, _selected(old, keep.to(old.device), place.axis)
        new = shared[key][1]
        registry = place.module._parameters if place.tensor in place.module._parameters else place.module._buffers
        changed.append((place.module, old.shape[place.axis], new.shape[place.axis]))
        registry[place.tensor] = new  # type: ignore[assignment]
        # No constructor can tell which of its values stayed: a buffer that was cut belongs to the state dict.
        place.module._non_persistent_buffers_set.discard(place.tensor)
    return changed


def _selected(old: Tensor, keep: Tensor, axis: int) -> Tensor:
    new = old.detach().index_select(axis, keep)
    if not isinstance(old, nn.Parameter):
        return new
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    if old.grad is not None:
        parameter.grad = old.grad.index_select(axis, keep)
    return parameter


def refresh_(module: nn.Module, tracer: Tracer, alive: Tensor) -> None:
    """Sets the sizes that known layers keep beside their tensors.

    Args:
        module: A layer whose tensors were cut (or a norm without any).
        tracer: Knows what grouped layers read.
        alive: (L,) bool, labels in the model now.
    """
    if isinstance(module, CPDBlock):
        module.out_channels = module.head.shape[0]
        _refresh_groups_(module, tracer, alive, module.head.shape[2])
    elif isinstance(module, nn.modules.conv._ConvNd):
        rows, columns = module.weight.shape[:2]
        if module.transposed:
            if module.groups > 1:
                module.groups = module.groups * rows // module.in_channels
            module.in_channels, module.out_channels = rows, columns * module.groups
        else:
            module.out_channels = rows
            _refresh_groups_(module, tracer, alive, columns)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.GroupNorm):
        channels = module.num_channels if module.weight is None else len(module.weight)
        if tracer.whole_groups.get(module):
            module.num_groups = module.num_groups * channels // module.num_channels
        module.num_channels = channels
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = module.running_mean if module.weight is None else module.weight
        if tensor is not None:
            module.num_features = len(tensor)
    elif isinstance(module, nn.LayerNorm) or hasattr(module, "normalized_shape"):
        weight = getattr(module, "weight", None)
        if weight is not None:
            module.normalized_shape = tuple(weight.shape)  # type: ignore[assignment]
        elif module in tracer.norm_inputs:
            module.normalized_shape = (int(alive[tracer.norm_inputs[module]].sum()),)  # type: ignore[assignment]
    elif isinstance(module, nn.MultiheadAttention):
        module.embed_dim = module.out_proj.weight.shape[1]  # its rows are free where nothing is added to its output
        module.head_dim = module.embed_dim // module.num_heads
        if module.in_proj_weight is not None:
            module.kdim = module.vdim = module.embed_dim
        else:
            module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
        renew_references_(module)
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = module.weight_ih.shape[1]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def _refresh_groups_(module: Any, tracer: Tracer, alive: Tensor, width: int) -> None:
    if module.groups == 1:
        module.in_channels = width
        return
    inputs = tracer.group_inputs.get(module)
    if inputs is not None:
        module.in_channels = int(alive[inputs].sum())
        module.groups = module.in_channels // width


def rescale_(rescales: Sequence[Rescale], registry: Registry, alive: Tensor, before: Tensor) -> None:
    """Multiplies rows so that a scale computed from a width that changed has the effect it had.

    Attention divides by the square root of the width of a head; w^p x becomes v^p x, so x is multiplied by (w / v)^p.

    Args:
        rescales: As the trace noted them.
        registry: Families of slots.
        alive: (L,) bool, labels in the model now.
        before: (L,) bool, labels in it before.
    """
    for entry in rescales:
        old, new = int(before[entry.width].sum()), int(alive[entry.width].sum())
        if old == new:
            continue
        factor = (old / new) ** entry.exponent
        hit = torch.zeros(len(alive), dtype=torch.bool)
        hit[entry.rows] = True
        hit[0] = False
        for number in torch.unique(registry.family_of(entry.rows[entry.rows != 0])).tolist():
            family = registry.families[number]
            own = slice(family.base, family.base + family.size)
            rows = hit[own][alive[own]]
            for place in family.places[:1]:
                _scale_rows_(place.module, place.tensor, rows, factor)
                bias = "bias" if isinstance(family.owner, CPDBlock) else family.tensor.replace("weight", "bias")
                if bias != place.tensor and getattr(place.module, bias, None) is not None:
                    _scale_rows_(place.module, bias, rows, factor)


def _scale_rows_(module: nn.Module, name: str, rows: Tensor, factor: float) -> None:
    old = getattr(module, name)
    scale = torch.ones(len(rows), dtype=old.dtype, device=old.device)
    scale[rows.to(old.device)] = factor
    new = nn.Parameter(old.detach() * scale.view(-1, *(1,) * (old.dim() - 1)), requires_grad=old.requires_grad)
    module._parameters[name] = new
