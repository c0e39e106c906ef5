"""A bound on the memory that building a model takes, kept before each tensor is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from norton_plugin.errors import SourceError
from norton_plugin.zoo.stored import TRUST

_MOST_BYTES = 8 * 2**30
_MOST_OPERATIONS = 50_000  # the largest detector of mmdet, two hourglasses of 104 layers, takes 6,200


class BoundedTensors(TorchDispatchMode):
    """Within it, this thread makes tensors up to a number of bytes in total, and no more.

    Sizes in a source multiply: two harmless numbers can ask for terabytes, which no limit of single numbers sees. The
    shapes an operation returns are found on the meta device, which holds no memory; for a model's constructor the
    total is the model's size to a few percent.

    Args:
        most: Bytes in total.
    """

    def __init__(self, *, most: int = _MOST_BYTES) -> None:
        super().__init__()
        self.most = most
        self._bytes = 0
        self._operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler for this class, which takes seconds and makes a folder."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count what an operation makes, then run it.

        Raises:
            SourceError: It would pass the bound.
        """
        self._operations += 1
        self._bytes += _bytes_made(func, args, kwargs or {})
        if self._bytes > self.most or self._operations > _MOST_OPERATIONS:
            raise SourceError(
                f"the model would take over {self.most / 2**30:g} GiB or {_MOST_OPERATIONS} operations to build; "
                f"{TRUST}"
            )
        return func(*args, **(kwargs or {}))


def _bytes_made(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Bytes of the tensors that an operation makes anew."""
    if func.is_view or func._schema.is_mutable:
        return 0
    args, kwargs = tree_map(_shape_of, (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": "meta"}
    try:
        made = func(*args, **kwargs)
    except Exception:  # it depends on values, such as a tensor read as a number, or it fails in earnest as well
        return 0
    return sum(tensor.numel() * tensor.element_size() for tensor in tree_leaves(made) if isinstance(tensor, Tensor))


def _shape_of(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
