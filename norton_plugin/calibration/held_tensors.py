"""What paused passes hold to go on: in memory up to a limit, beyond it in files that have no name.

A pass that is paused holds every tensor that its model's code still needs. Their storages are exchanged for mapped
files while it stands still, so that the model goes on with the same tensors; the operating system reads of a file what
is touched. Values stay as they are, to the bit. What stays in memory: storages that something else holds as well, such
as what a scripted function made or a tensor of another type, and tensors that are not on the CPU. A storage in a file
cannot be resized.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton_plugin.errors import SurgeryError
from norton_plugin.modules.system_memory import available_bytes, give_back_freed, leave_pages
from norton_plugin.recipe.byte_size import in_words

# Where the system does not say what is available, and the share of what is available that is taken.
_USUAL_LIMIT, _SHARE = 4 * 2**30, 0.5
# Smaller storages are not worth a file.
_LEAST_BYTES = 2**16


class HeldMemory:
    """The memory that all paused passes may hold together.

    Args:
        limit: Bytes; None for half of what is available now, 4 GiB where the system does not tell.
        given: Returns tensors that passes read and did not make, such as weights; they stay where they are.

    Attributes:
        limit: Bytes.
        written: Bytes that were ever written to files.
    """

    def __init__(self, limit: int | None = None, *, given: Callable[[], Iterable[Tensor]]) -> None:
        if limit is None:
            available = available_bytes()
            limit = _USUAL_LIMIT if available is None else int(available * _SHARE)
        self.limit = limit
        self.written = 0
        self._given = given
        self._held: weakref.WeakKeyDictionary[HeldTensors, int] = weakref.WeakKeyDictionary()

    def note(self, held: HeldTensors, size: int) -> None:
        """Note how many bytes a pass holds in memory."""
        self._held[held] = size

    @property
    def exceeded(self) -> bool:
        """Whether all passes together hold more than the limit in memory."""
        return sum(self._held.values()) > self.limit

    def given(self) -> set[int]:
        """Return the addresses of storages that no pass made."""
        return {tensor.untyped_storage().data_ptr() for tensor in self._given() if _has_storage(tensor)}

    def write(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """Return the same bytes in a mapped file.

        Raises:
            SurgeryError: The disk does not take them.
        """
        folder = "the folder of temporary files"
        try:
            folder = _folder()
            with tempfile.NamedTemporaryFile(prefix="norton-", dir=folder) as file:
                file.write(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
                file.flush()
                mapped = torch.UntypedStorage.from_file(file.name, True, storage.nbytes())
        except (OSError, RuntimeError) as error:  # the latter where a file cannot be mapped
            reason = getattr(error, "strerror", None) or str(error)
            raise SurgeryError(
                f"what the paused passes hold does not fit in {in_words(self.limit)} of memory, and {folder} does not "
                f"take the rest ({reason}; {in_words(self.written)} written so far); name another folder by "
                "TMPDIR, give more memory (--memory), or fewer images (--images)"
            ) from error
        self.written += storage.nbytes()
        return cast(torch.UntypedStorage, mapped)


class HeldTensors:
    """The tensors that one pass made and still holds.

    Args:
        memory: Shared by all passes.
    """

    def __init__(self, memory: HeldMemory) -> None:
        self._memory = memory
        self._made: list[weakref.ref[Tensor]] = []
        self._mapped: dict[int, torch.UntypedStorage] = {}  # by their addresses, which nothing else has meanwhile

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Remember tensors that the pass made, as long as it holds them."""
        self._made += map(weakref.ref, tensors)

    def settle(self) -> None:
        """Write what is too much to disk, and leave the pages that were read of it; only while the pass stands still.

        Raises:
            SurgeryError: The disk does not take it.
        """
        found = {id(tensor): tensor for made in self._made if (tensor := made()) is not None and _is_plain(tensor)}
        self._made = [weakref.ref(tensor) for tensor in found.values()]
        by_storage: dict[int, list[Tensor]] = {}
        for tensor in found.values():
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self._mapped = {address: storage for address, storage in self._mapped.items() if address in by_storage}
        for storage in self._mapped.values():
            leave_pages(storage.data_ptr(), storage.nbytes())
        own = {address: held for address, held in by_storage.items() if address not in self._mapped}
        self._note(own.values())
        if not self._memory.exceeded:
            return
        given = self._memory.given()
        own = {address: held for address, held in own.items() if address not in given}
        self._note(own.values())
        if not self._memory.exceeded:
            return
        movable = [address for address, held in own.items() if _bytes(held) >= _LEAST_BYTES and _are_all(held)]
        for address in movable:
            self._move_(own.pop(address))
        if movable:
            give_back_freed()
            self._note(own.values())

    def _note(self, held: Iterable[list[Tensor]]) -> None:
        self._memory.note(self, sum(map(_bytes, held)))

    def _move_(self, tensors: list[Tensor]) -> None:
        """Exchange the storage that these tensors share."""
        storage = self._memory.write(tensors[0].untyped_storage())
        self._mapped[storage.data_ptr()] = storage
        with torch.no_grad():
            for tensor in tensors:
                tensor.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def tensors_of(*sources: Any) -> Callable[[], list[Tensor]]:
    """Return a function that returns the tensors of models and of batches, as they are when it is called."""

    def found() -> list[Tensor]:
        tensors: list[Tensor] = []
        for source in sources:
            of_model = isinstance(source, nn.Module)
            leaves = [*source.parameters(), *source.buffers()] if of_model else tree_leaves(source)
            tensors += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return tensors

    return found


def _has_storage(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided


def _is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor is one whose storage can be exchanged."""
    plain = type(tensor) is Tensor and not tensor.is_inference() and not tensor.is_quantized
    return plain and _has_storage(tensor) and not tensor.requires_grad


def _are_all(tensors: list[Tensor]) -> bool:
    """Tell whether nothing but these tensors holds the storage that they share."""
    storage = tensors[0].untyped_storage()
    own: int = torch._C._storage_Use_Count(storage._cdata)
    return own == len(tensors) + 1  # the storage that was just asked for


def _bytes(tensors: list[Tensor]) -> int:
    return tensors[0].untyped_storage().nbytes()


def _folder() -> str:
    """Return where files go: /tmp is often memory itself. A TMPDIR that takes no files is passed over, as by Python."""
    wanted = (os.environ.get("TMPDIR"), "/var/tmp")
    usable = (folder for folder in wanted if folder and os.path.isdir(folder) and os.access(folder, os.W_OK))
    return next(usable, None) or tempfile.gettempdir()
