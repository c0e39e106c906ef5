"""What a model keeps of its runs, such as a count of frames: taken back after the runs that work on it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from norton_plugin.modules.snapshot import Snapshot


@contextmanager
def preserved_state(model: nn.Module, *, norms: bool = True) -> Iterator[None]:
    """While entered, the model may run: attributes, flags, buffers and the values of those come back.

    Args:
        model: Whatever else is changed meanwhile, such as parameters and submodules, stays so.
        norms: Whether that includes modules with running statistics, which may be re-estimated meanwhile.
    """
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    kept = [module for module in modules if norms or "running_mean" not in module._buffers]
    before = Snapshot(kept)
    held = [(module._buffers, dict(module._buffers)) for module in kept]
    buffers = [buffer for _, entries in held for buffer in entries.values() if buffer is not None]
    values = [(buffer, buffer.detach().clone()) for buffer in buffers if _is_plain(buffer)]
    try:
        yield
    finally:
        before.restore_()
        for owner, entries in held:
            owner.clear()
            owner.update(entries)
        with torch.no_grad():
            for buffer, value in values:
                if not _equal(buffer, value):
                    buffer.copy_(value)


def _is_plain(buffer: Tensor) -> bool:
    """Return whether the values of a buffer can be compared and written."""
    return buffer.layout == torch.strided and not (buffer.is_meta or buffer.is_inference() or buffer.is_quantized)


def _equal(new: Tensor, old: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same values, NaN for NaN."""
    return torch.equal(new, old) or bool(((new == old) | ((new != new) & (old != old))).all())
