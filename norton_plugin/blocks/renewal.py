"""Keep positions of a layer's parameters: each becomes a new object, its gradient and its flag go along."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from norton_plugin.errors import SurgeryError

AXES = ("filters", "channels", "components")


def checked_index(keep: Tensor | Sequence[int], axis: str, sizes: dict[str, int], like: Tensor) -> Tensor:
    """Return the positions to keep as an index.

    Raises:
        SurgeryError: Another axis, no position, or one that is not there.
    """
    if axis not in AXES:
        raise SurgeryError(f"axis {axis!r} is unknown; expected one of {AXES}")
    index = torch.as_tensor(keep, dtype=torch.long, device=like.device)
    if index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= sizes[axis]:
        raise SurgeryError(f"indices {index.tolist()} do not select from {sizes[axis]} {axis}")
    return index


def check_groups(group: Tensor, groups: int, what: str) -> None:
    """Refuse to keep other numbers in one channel group than in another.

    Args:
        group: The channel group of each position that stays.
        groups: Number of groups.
        what: What is selected, for the message.

    Raises:
        SurgeryError: The numbers differ.
    """
    counts = torch.bincount(group, minlength=groups)
    if int(counts.min()) != int(counts.max()):
        raise SurgeryError(
            f"{counts.tolist()} {what} would stay in the {groups} channel groups; every one has to keep as many"
        )


def select_parameter_(layer: nn.Module, name: str, index: Tensor, dim: int) -> None:
    """Keep positions of one parameter along a dimension; do nothing where the layer has none of this name."""
    _renew_(layer, name, lambda tensor: tensor.index_select(dim, index))


def gather_parameter_(layer: nn.Module, name: str, index: Tensor) -> None:
    """Keep positions of one parameter along dimension 1, of each row its own.

    Args:
        layer: Changed in place.
        name: Of the parameter (A, B, ...); nothing is done where the layer has none.
        index: (A, b), positions from 0 to B - 1.
    """

    def gathered(tensor: Tensor) -> Tensor:
        places = index.reshape(*index.shape, *(1,) * (tensor.dim() - 2))
        return tensor.gather(1, places.expand(-1, -1, *tensor.shape[2:]))

    _renew_(layer, name, gathered)


def _renew_(layer: nn.Module, name: str, kept: Callable[[Tensor], Tensor]) -> None:
    old = getattr(layer, name)
    if old is not None:
        new = nn.Parameter(kept(old.detach()), requires_grad=old.requires_grad)
        new.grad = None if old.grad is None else kept(old.grad)
        setattr(layer, name, new)
