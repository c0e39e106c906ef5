"""How operations run in the masked model: as if the removed channels were not there, on tensors of unchanged size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from norton_plugin.channels.label_maps import varying

# (label map of the masked operand, bool mask of its core: True where the element is removed)
Removed = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Masking:
    """How an operation runs in the masked model.

    Attributes:
        run: ``(func, args, kwargs, removed) -> output``.
        consumes: Whether the operation makes something else of the channels of its operand; otherwise it passes them
            on.
    """

    run: Callable[[Any, Any, Any, Removed], Any]
    consumes: bool = False


def _with_zeros(func: Any, args: Any, kwargs: Any, removed: Removed, *, operand: int) -> Any:
    args = list(args)
    # A clone keeps the memory layout (masked_fill would not), and with it the operations that follow.
    args[operand] = args[operand].clone()
    for _, mask in removed:
        args[operand].masked_fill_(mask.to(args[operand].device), 0)
    return func(*args, **kwargs)


def _kept_positions(tensor: Tensor, removed: Removed, dims: Callable[[int], bool]) -> dict[int, Tensor]:
    """Return the positions that stay, for each dimension along which all labels of a position are removed."""
    kept: dict[int, Tensor] = {}
    for label_map, mask in removed:
        for d in varying(label_map):
            if not dims(d):
                continue
            others = [o for o in range(mask.dim()) if o != d and mask.shape[o] > 1]
            position_removed = mask.all(dim=others) if others else mask
            keep = torch.nonzero(~position_removed.reshape(-1)).reshape(-1).to(tensor.device)
            if d in kept:
                keep = keep[torch.isin(keep, kept[d])]
            kept[d] = keep
    return kept


def _take(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    for d, index in kept.items():
        tensor = tensor.index_select(d, index)
    return tensor


def _put_back(small: Tensor, like: Tensor, kept: dict[int, Tensor]) -> Tensor:
    shape = list(small.shape)
    for d, index in sorted(kept.items()):
        shape[d] = like.shape[d]
        small = small.new_zeros(shape).index_copy(d, index, small)
    return small


def _over_kept(func: Any, args: Any, kwargs: Any, removed: Removed, *, dims_argument: int) -> Any:
    kept = _kept_positions(args[0], removed, lambda d: True)
    dims = args[dims_argument] if len(args) > dims_argument else kwargs.get("dim")
    if isinstance(dims, int) and not isinstance(dims, bool):
        dims = [dims]
    if isinstance(dims, list | tuple) and dims:
        over = {d % args[0].dim() for d in dims}
        kept = {d: index for d, index in kept.items() if d in over}
    return func(_take(args[0], kept), *args[1:], **kwargs)


def _among_kept(func: Any, args: Any, kwargs: Any, removed: Removed) -> Any:
    kept = _kept_positions(args[0], removed, lambda d: True)
    return _put_back(func(_take(args[0], kept), *args[1:], **kwargs), args[0], kept)


def _pairs_over_kept(func: Any, args: Any, kwargs: Any, removed: Removed) -> Any:
    kept = _kept_positions(args[0], removed, lambda d: d == args[0].dim() - 1)
    return func(_take(args[0], kept), _take(args[1], kept), *args[2:], **kwargs)


def _layer_norm(func: Any, args: Any, kwargs: Any, removed: Removed) -> Any:
    x, normalized, *rest = args
    first = x.dim() - len(normalized)
    kept = _kept_positions(x, removed, lambda d: d >= first)
    inner = {d - first: index for d, index in kept.items()}
    sizes = [len(inner[d]) if d in inner else n for d, n in enumerate(normalized)]
    rest = [_take(entry, inner) if isinstance(entry, Tensor) else entry for entry in rest]
    out = func(_take(x, kept), sizes, *rest, **kwargs)
    return (_put_back(out[0], x, kept), *out[1:])


def _batch_norm(func: Any, args: Any, kwargs: Any, removed: Removed) -> Any:
    kept = _kept_positions(args[0], removed, lambda d: d != 1)
    out = func(_take(args[0], kept), *args[1:], **kwargs)
    return (_put_back(out[0], args[0], kept), *out[1:])


def _group_norm(func: Any, args: Any, kwargs: Any, removed: Removed) -> Any:
    x, weight, bias, batch, _, area, *rest = args
    kept = _kept_positions(x, removed, lambda d: d == 1)
    index = kept[1]
    weight, bias = (None if p is None else p.index_select(0, index) for p in (weight, bias))
    out = func(_take(x, kept).contiguous(), weight, bias, batch, len(index), area, *rest, **kwargs)
    return (_put_back(out[0], x, kept), *out[1:])


# Removed elements of the first (second) operand count as zero: for sums of products.
ZERO_FIRST = Masking(partial(_with_zeros, operand=0), consumes=True)
ZERO_SECOND = Masking(partial(_with_zeros, operand=1), consumes=True)
# Sums, means and norms are taken over the kept positions; the dimensions are argument 1 (2).
OVER_KEPT = Masking(partial(_over_kept, dims_argument=1), consumes=True)
NORM_OVER_KEPT = Masking(partial(_over_kept, dims_argument=2), consumes=True)
# Distances between the vectors of two operands are those of the kept positions, along the last dimension of both.
PAIRS_OVER_KEPT = Masking(_pairs_over_kept, consumes=True)
# The operation sees the kept positions alone, side by side; its outputs return to their places.
AMONG_KEPT = Masking(_among_kept)
# Statistics are those of the kept positions.
LAYER_NORM = Masking(_layer_norm)
BATCH_NORM = Masking(_batch_norm)
GROUP_NORM = Masking(_group_norm)
