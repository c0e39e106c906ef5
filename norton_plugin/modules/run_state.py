"""What a model keeps of its runs, such as a running mean or a count of frames: taken back after runs of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.modules.snapshot import Snapshot

# Attributes of these types are compared: modules keep in such ones what they cached last time, and for which size.
_PLAIN = (bool, int, float, str, tuple, type(None), torch.dtype, torch.device)


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """While entered, the model may run: attributes, flags, buffers and the values of those come back."""
    before = Snapshot(model.modules())
    owners = [module._buffers for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    held = [(owner, dict(owner)) for owner in owners]
    buffers = [buffer for owner in owners for buffer in owner.values() if buffer is not None]
    values = [(buffer, buffer.detach().clone()) for buffer in buffers if _is_plain(buffer)]
    try:
        yield
    finally:
        before.restore_()
        for owner, entries in held:
            owner.update(entries)
        with torch.no_grad():
            for buffer, value in values:
                if not _equal(buffer, value):
                    buffer.copy_(value)


class RunState:
    """What a run changes in a model that is evaluated: values of buffers and plain attributes of its modules.

    Args:
        copied: A copy of the model that has been run since.
        model: The model itself, which has not.
    """

    def __init__(self, copied: nn.Module, model: nn.Module) -> None:
        self._kept: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        pairs = zip(copied.named_modules(), model.modules(), strict=True)
        for (name, own), original in pairs:
            if not isinstance(original, torch.jit.ScriptModule):
                buffers, attributes = _moved_buffers(own, original), _moved_attributes(own, original)
                if buffers or attributes:
                    self._kept[name] = ({key: value.detach().clone() for key, value in buffers.items()}, attributes)

    def restore_(self, model: nn.Module) -> None:
        """Put everything back in the model or in a copy, except in modules whose buffers have other shapes now."""
        modules = dict(model.named_modules())
        for name, (buffers, attributes) in self._kept.items():
            found = modules.get(name)
            if found is None:
                continue
            now = {key: found._buffers.get(key) for key in buffers}
            if all(new is not None and new.shape == buffers[key].shape for key, new in now.items()):
                found._buffers.update({key: value.clone() for key, value in buffers.items()})
                found.__dict__.update(attributes)


def _moved_buffers(own: nn.Module, original: nn.Module) -> dict[str, Tensor]:
    """Return the original's buffers that have other values in the copy."""
    pairs = ((name, own._buffers.get(name), old) for name, old in original._buffers.items())
    return {n: old for n, new, old in pairs if old is not None and _is_plain(old) and not _equal(new, old)}


def _moved_attributes(own: nn.Module, original: nn.Module) -> dict[str, Any]:
    """Return the original's plain attributes that have other values in the copy."""
    now = vars(own)
    plain = {name: old for name, old in vars(original).items() if isinstance(old, _PLAIN) and name != "training"}
    return {name: old for name, old in plain.items() if isinstance(now.get(name), _PLAIN) and now[name] != old}


def _is_plain(buffer: Tensor) -> bool:
    """Return whether the values of a buffer can be compared and written."""
    return buffer.layout == torch.strided and not (buffer.is_meta or buffer.is_inference() or buffer.is_quantized)


def _equal(new: Tensor | None, old: Tensor) -> bool:
    """Return whether two tensors hold the same values, NaN for NaN."""
    if new is None or new.shape != old.shape:
        return False
    return torch.equal(new, old) or bool(((new == old) | ((new != new) & (old != old))).all())
