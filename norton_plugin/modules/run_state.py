"""What a model keeps of its runs, such as a count of frames: taken back after the runs that work on it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn

from norton_plugin.modules.snapshot import Snapshot


@contextmanager
def preserved_state(model: nn.Module, *, fitted: bool = False) -> Iterator[None]:
    """While entered, the model may run: attributes, flags, buffers and the values of those come back.

    So do the values of frozen scalars and vectors, in which some models keep what is no parameter.

    Args:
        model: Whatever else is changed meanwhile, such as parameters and submodules, stays so.
        fitted: What fits a model to images stays changed too: running statistics and parameters.
    """
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    kept = [module for module in modules if not (fitted and "running_mean" in module._buffers)]
    before = Snapshot(kept)
    held = [(module._buffers, dict(module._buffers)) for module in kept]
    kept_tensors = [buffer for _, entries in held for buffer in entries.values() if buffer is not None]
    if not fitted:
        kept_tensors += [p for module in kept for p in module._parameters.values() if _is_state(p)]
    values = [(tensor, tensor.detach().clone()) for tensor in kept_tensors if _is_plain(tensor)]
    try:
        yield
    finally:
        before.restore_()
        for owner, entries in held:
            owner.clear()
            owner.update(entries)
        with torch.no_grad():
            for tensor, value in values:
                if not _equal(tensor, value):
                    tensor.copy_(value)


def _is_state(parameter: nn.Parameter | None) -> TypeGuard[nn.Parameter]:
    """Return whether a parameter may be one in which a model keeps something: a frozen scalar or vector."""
    return parameter is not None and not parameter.requires_grad and parameter.dim() < 2


def _is_plain(tensor: Tensor) -> bool:
    """Return whether the values of a tensor can be compared and written."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_inference() or tensor.is_quantized)


def _equal(new: Tensor, old: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same values, NaN for NaN."""
    return torch.equal(new, old) or bool(((new == old) | ((new != new) & (old != old))).all())
