"""Exact rollback of surgery: what modules hold by reference is remembered and put back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_STORES = ("_parameters", "_buffers", "_modules")


class _Container:
    """A list, dict or set, and what it holds: several modules may hold the very same one."""

    def __init__(self, own: Any) -> None:
        self.own, self._held = own, type(own)(own)

    def restored(self) -> Any:
        self.own.clear()
        (self.own.extend if isinstance(self.own, list) else self.own.update)(self._held)
        return self.own


def _kept(value: Any) -> Any:
    return _Container(value) if type(value) in (list, dict, set) else value


def _restored(value: Any) -> Any:
    return value.restored() if type(value) is _Container else value


class Snapshot:
    """The state of modules (and of further dicts) at one moment.

    Surgery replaces parameters, sub-modules and plain attributes and never writes into a tensor, so references are
    enough: taking a snapshot costs no memory to speak of, and restoring it brings back the very same objects.

    Args:
        modules: Every module that may be changed.
        dicts: Further dicts that may be changed.
    """

    def __init__(self, modules: Iterable[nn.Module], dicts: Iterable[dict[Any, Any]] = ()) -> None:
        self._saved: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # never changed, and its state is not kept in dicts
            state = module.__dict__
            self._remember(state)
            for store in _STORES:
                self._remember(state[store])
        for entry in dicts:
            self._remember(entry)

    def _remember(self, live: dict[Any, Any]) -> None:
        self._saved.append((live, {key: _kept(value) for key, value in live.items() if key not in _STORES}))

    def restore_(self) -> None:
        """Restore everything, in place."""
        for live, saved in self._saved:
            stores = {key: live[key] for key in _STORES if key in live}
            live.clear()
            live.update({key: _restored(value) for key, value in saved.items()})
            # Parameters, buffers and submodules are dicts with entries of their own: keep the live objects.
            live.update(stores)
