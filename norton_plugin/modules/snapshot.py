"""Exact rollback of surgery: what modules hold by reference is remembered and put back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_STORES = ("_parameters", "_buffers", "_modules")


def _copy(value: Any) -> Any:
    return type(value)(value) if type(value) in (list, dict, set) else value


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
        self._saved.append((live, {key: _copy(value) for key, value in live.items()}))

    def restore_(self) -> None:
        """Restore everything, in place."""
        for live, saved in self._saved:
            stores = {key: live[key] for key in _STORES if key in live}
            live.clear()
            live.update({key: _copy(value) for key, value in saved.items()})
            # Parameters, buffers and submodules are dicts with entries of their own: keep the live objects.
            live.update(stores)
