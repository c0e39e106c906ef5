"""What a model would compute without some channels, while they are still there.

A removed channel must not reach anybody: the weights that read it are taken as zero, and norms that average over
channels average over the kept ones. If the pruned model computes anything else, the group was wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from norton_plugin.blocks import CPDBlock
from norton_plugin.surgery.graph import Member


def _mask_weight(member: Member) -> tuple[nn.Parameter, Tensor]:
    """The parameter that reads the channels, and a copy of it with those columns at zero."""
    module = member.module
    groups = int(getattr(module, "groups", 1))
    if isinstance(module, CPDBlock):
        parameter, axis = module.head, 2
    else:
        parameter = module.get_parameter("weight")  # type: ignore[union-attr]
        axis = 0 if getattr(module, "transposed", False) else 1
    masked_copy = parameter.detach().clone()
    if groups == 1 or axis == 0:
        masked_copy.index_fill_(axis, torch.tensor(member.indices, device=masked_copy.device), 0)
        return parameter, masked_copy
    filters = masked_copy.shape[0] // groups
    for index in member.indices:
        group, channel = divmod(index, masked_copy.shape[axis])
        masked_copy[group * filters : (group + 1) * filters].select(axis, channel).zero_()
    return parameter, masked_copy


def _norm_over_kept(x: Tensor, module: nn.GroupNorm | nn.LayerNorm, kept: Tensor, axis: int, groups: int) -> Tensor:
    """Normalises by the mean and variance of the kept channels; removed channels come out as some finite number."""
    x = x.movedim(axis, 1)
    shape = x.shape
    channels = shape[1]
    weight, bias = module.weight, module.bias
    if isinstance(module, nn.GroupNorm):
        parts = x.reshape(shape[0], groups, channels // groups, -1)
        mask = kept.view(1, groups, channels // groups, 1).to(x.dtype)
        count = mask.sum(2, keepdim=True) * parts.shape[-1]
        dims: tuple[int, ...] = (2, 3)
    else:
        parts = x.reshape(shape[0], channels, -1)
        mask = kept.view(1, channels, 1).to(x.dtype)
        count = mask.sum(1, keepdim=True)
        dims = (1,)
    mean = (parts * mask).sum(dims, keepdim=True) / count
    variance = (((parts - mean) * mask) ** 2).sum(dims, keepdim=True) / count
    out = ((parts - mean) / torch.sqrt(variance + module.eps)).reshape(shape)
    view = (1, channels) + (1,) * (len(shape) - 2)
    if weight is not None:
        out = out * weight.view(view)
    if bias is not None:
        out = out + bias.view(view)
    return out.movedim(1, axis)


def _channel_axis(module: nn.Module) -> int | None:
    """The axis a channel-mixing norm reduces over, None where the module is no such norm."""
    if isinstance(module, nn.GroupNorm):
        return 1
    if isinstance(module, nn.LayerNorm):
        # timm's LayerNorm2d and its like keep the channels of (B, C, H, W) in front.
        return 1 if type(module) is not nn.LayerNorm and "2d" in type(module).__name__.lower() else -1
    return None


@contextmanager
def masked(members: Sequence[Member]) -> Iterator[None]:
    """While this is entered, the model computes as if the members' channels were removed.

    Args:
        members: As ``DependencyGraph.members_of`` lists them for the removed channels (of one or many groups).
    """
    with ExitStack() as stack:
        norms: dict[nn.Module, set[int]] = {}
        for member in members:
            module = member.module
            if member.role == "in" and getattr(module, "weight", None) is not None:
                parameter, without = _mask_weight(member)
                stack.callback(_set_data, parameter, parameter.data)
                parameter.data = without
            elif member.role == "both" and isinstance(module, nn.Module) and _channel_axis(module) is not None:
                norms.setdefault(module, set()).update(member.indices)
        for module, removed in norms.items():
            _mask_norm(module, removed, stack)
        yield


def _set_data(parameter: nn.Parameter, data: Tensor) -> None:
    parameter.data = data


def _mask_norm(module: nn.Module, removed: set[int], stack: ExitStack) -> None:
    size = module.num_channels if isinstance(module, nn.GroupNorm) else module.normalized_shape[-1]  # type: ignore[index]
    kept = torch.ones(size, dtype=torch.bool)  # type: ignore[arg-type]
    kept[list(removed)] = False
    axis, groups = _channel_axis(module), getattr(module, "num_groups", 1)

    def forward(x: Tensor) -> Tensor:
        return _norm_over_kept(x, module, kept.to(x.device), axis, groups)  # type: ignore[arg-type]

    module.forward = forward
    stack.callback(module.__dict__.pop, "forward", None)


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference over all outputs, relative to the largest expected value of each.

    Returns:
        Infinity where shapes differ or a value is not finite.
    """
    worst = 0.0
    if len(actual) != len(expected):
        return float("inf")
    for got, want in zip(actual, expected, strict=True):
        if got.shape != want.shape:
            return float("inf")
        if want.numel() == 0:
            continue
        scale = want.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        error = float(((got - want).abs().max() / scale).nan_to_num(nan=float("inf")))
        worst = max(worst, error)
    return worst
