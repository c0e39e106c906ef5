"""A counter of the bytes that tensors hold: every storage an operation makes, until the last tensor on it is gone."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HeldBytes(TorchDispatchMode):
    """Counts what is made while it is entered, in its own thread.

    Attributes:
        now: Bytes held.
        peak: Most that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._owners: dict[int, int] = {}  # address of a storage -> tensors on it
        self._known: set[int] = set()  # tensors that are counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returns."""
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == "cpu":
                self._count(leaf, given)
        return out

    def _count(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or id(tensor) in self._known:
            return
        if address not in self._owners:
            if address in given:
                return  # a view of something that was there before
            self._owners[address] = 0
            self.now += size
            self.peak = max(self.peak, self.now)
        self._owners[address] += 1
        self._known.add(id(tensor))
        weakref.finalize(tensor, self._gone, id(tensor), address, size)

    def _gone(self, number: int, address: int, size: int) -> None:
        self._known.discard(number)
        self._owners[address] -= 1
        if not self._owners[address]:
            del self._owners[address]
            self.now -= size


def held_by(run: Any) -> HeldBytes:
    """Run a function and return what was held."""
    counter = HeldBytes()
    with counter, torch.no_grad():
        run()
    return counter
