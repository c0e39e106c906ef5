"""Runs the unpruned model as if channels were gone, by what the trace knows of every operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from norton_plugin.channels.label_maps import core, varying
from norton_plugin.channels.records import Step, operation_name, taken_apart


class MaskedReplay(TorchDispatchMode):
    """While entered, removed channels reach nobody: sums leave them out, statistics are those of the kept ones.

    The model has to run the very operations of the trace, on inputs of the same shapes.

    Args:
        steps: Of the trace, by the name of the operation and how many of that name came before.
        removed: (L,) bool, labels that are gone.
    """

    def __init__(self, steps: dict[tuple[str, int], Step], removed: Tensor) -> None:
        super().__init__()
        self._steps = steps
        self._removed = removed
        self._seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (out := taken_apart(self, func, args, kwargs)) is not NotImplemented:
            return out
        name = operation_name(func)
        step = self._steps.get((name, self._seen[name]))
        self._seen[name] += 1
        if step is not None:
            gone = [(plane, self._removed[core(plane)]) for plane in step.planes]
            gone = [(plane, mask) for plane, mask in gone if bool(mask.any())]
            if gone:
                return _MASKED[step.kind](func, args, kwargs, gone)
        return func(*args, **kwargs)


Gone = list[tuple[Tensor, Tensor]]


def _zeroed(func: Any, args: Any, kwargs: Any, gone: Gone) -> Any:
    args = list(args)
    position = 1 if operation_name(func) in ("addmm", "baddbmm") else 0
    # A clone keeps the memory layout (masked_fill would not), and with it the operations that follow.
    args[position] = args[position].clone()
    for _, mask in gone:
        args[position].masked_fill_(mask.to(args[position].device), 0)
    return func(*args, **kwargs)


def _kept_positions(tensor: Tensor, gone: Gone, dims: Callable[[int], bool]) -> dict[int, Tensor]:
    """Positions that stay, for each dimension along which all labels of a slab are removed."""
    kept: dict[int, Tensor] = {}
    for plane, mask in gone:
        for d in varying(plane):
            if not dims(d):
                continue
            others = [o for o in range(mask.dim()) if o != d and mask.shape[o] > 1]
            slab = mask.all(dim=others) if others else mask
            keep = torch.nonzero(~slab.reshape(-1)).reshape(-1).to(tensor.device)
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


def _reduced(func: Any, args: Any, kwargs: Any, gone: Gone) -> Any:
    kept = _kept_positions(args[0], gone, lambda d: True)
    dims = args[1] if len(args) > 1 and isinstance(args[1], list | tuple | int) else kwargs.get("dim")
    if operation_name(func) in ("linalg_vector_norm", "norm"):
        dims = args[2] if len(args) > 2 else kwargs.get("dim")
    if dims:
        over = {d % args[0].dim() for d in ([dims] if isinstance(dims, int) else dims)}
        kept = {d: index for d, index in kept.items() if d in over}
    return func(_take(args[0], kept), *args[1:], **kwargs)


def _among_kept(func: Any, args: Any, kwargs: Any, gone: Gone) -> Any:
    kept = _kept_positions(args[0], gone, lambda d: True)
    return _put_back(func(_take(args[0], kept), *args[1:], **kwargs), args[0], kept)


def _layer_normed(func: Any, args: Any, kwargs: Any, gone: Gone) -> Any:
    x, normalized, *rest = args
    first = x.dim() - len(normalized)
    kept = _kept_positions(x, gone, lambda d: d >= first)
    inner = {d - first: index for d, index in kept.items()}
    sizes = [len(inner[d]) if d in inner else n for d, n in enumerate(normalized)]
    rest = [_take(entry, inner) if isinstance(entry, Tensor) else entry for entry in rest]
    out = func(_take(x, kept), sizes, *rest, **kwargs)
    return (_put_back(out[0], x, kept), *out[1:])


def _batch_normed(func: Any, args: Any, kwargs: Any, gone: Gone) -> Any:
    kept = _kept_positions(args[0], gone, lambda d: d != 1)
    out = func(_take(args[0], kept), *args[1:], **kwargs)
    return (_put_back(out[0], args[0], kept), *out[1:])


def _group_normed(func: Any, args: Any, kwargs: Any, gone: Gone) -> Any:
    x, weight, bias, batch, _, area, *rest = args
    kept = _kept_positions(x, gone, lambda d: d == 1)
    index = kept[1]
    weight, bias = (None if p is None else p.index_select(0, index) for p in (weight, bias))
    out = func(_take(x, kept).contiguous(), weight, bias, batch, len(index), area, *rest, **kwargs)
    return (_put_back(out[0], x, kept), *out[1:])


_MASKED: dict[str, Callable[..., Any]] = {
    "zero": _zeroed,
    "reduce": _reduced,
    "kept": _among_kept,
    "layer_norm": _layer_normed,
    "batch_norm": _batch_normed,
    "group_norm": _group_normed,
}
