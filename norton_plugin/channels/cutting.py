"""Remove positions from tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.channels.cut_sites import CutSite
from norton_plugin.channels.tensor_axes import RETURNED, TensorAxis
from norton_plugin.errors import SurgeryError
from norton_plugin.modules.output_selection import narrow_output_, output_selection


def cut_(axes: Iterable[TensorAxis], alive: Tensor, removed: Tensor) -> list[nn.Module]:
    """Keep the positions that stay in every tensor concerned.

    Args:
        axes: All axes with a label among ``removed``.
        alive: (L,) bool, labels still in the model.
        removed: (L,) bool, labels that are removed now.

    Returns:
        The modules whose tensors were cut.

    Raises:
        SurgeryError: A tensor would lose all its positions, or is not as large as it should be; nothing is changed.
    """
    changed = []
    # Tensors that several modules share are cut once; the old ones are kept alive so that no id is used twice.
    shared: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
    for site, size, keep in _planned(axes, alive, removed):
        changed.append(site.module)
        if site.tensor == RETURNED:
            narrow_output_(site.module, site.axis, size, keep.tolist())
            continue
        old = getattr(site.module, site.tensor)
        key = (id(old), site.axis, tuple(keep.tolist()))
        if key not in shared:
            shared[key] = old, _selected(old, keep.to(old.device), site)
        tensors = site.module._parameters if site.tensor in site.module._parameters else site.module._buffers
        tensors[site.tensor] = shared[key][1]  # type: ignore[assignment]
        site.note_size_(len(keep))
        # No constructor can tell which of its values stayed: a buffer that was cut belongs to the state dict.
        site.module._non_persistent_buffers_set.discard(site.tensor)
    return changed


def _planned(axes: Iterable[TensorAxis], alive: Tensor, removed: Tensor) -> list[tuple[CutSite, int, Tensor]]:
    """Return each site with its positions now and those that it keeps, after all checks."""
    planned: list[tuple[CutSite, int, Tensor]] = []
    for axis in axes:
        own = slice(axis.base, axis.base + axis.size)
        before = alive[own]
        size = int(before.sum())
        keep = torch.nonzero(~removed[own][before]).reshape(-1)
        if keep.numel() == 0:
            raise SurgeryError(f"{axis.name}.{axis.tensor} would lose all {size} of its channels")
        for site in axis.sites:
            found = _positions(site, size)
            if found != size:
                raise SurgeryError(
                    f"{axis.name}.{axis.tensor} has {found} positions along dimension {site.axis}, expected {size}; "
                    "it was changed since the trace: trace the model again"
                )
            planned.append((site, size, keep))
    return planned


def _positions(site: CutSite, expected: int) -> int:
    """Return the positions of a site now; those of a module that returns all it computes are as expected."""
    if site.tensor == RETURNED:
        selection = output_selection(site.module)
        return expected if selection is None else len(selection.kept)
    return int(site.sizes()[site.axis])


def _selected(old: Tensor, keep: Tensor, site: CutSite) -> Tensor:
    def select(tensor: Tensor) -> Tensor:
        return site.flat(site.laid_out(tensor).index_select(site.axis, keep))

    new = select(old.detach())
    if not isinstance(old, nn.Parameter):
        return new
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    if old.grad is not None:
        parameter.grad = select(old.grad)
    return parameter
