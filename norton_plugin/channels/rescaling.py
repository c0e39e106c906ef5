"""Scales that are powers of a width: compensated in the weights, and renewed where modules keep them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from norton_plugin.channels.cut_sites import CutSite
from norton_plugin.channels.records import Rescale, ScaleAttribute
from norton_plugin.channels.tensor_axes import AxisTable

# Words in the names of attributes that hold the scale of attention.
_SCALE_WORDS = ("scal", "factor", "temp")


def names_a_scale(name: str) -> bool:
    """Tell whether an attribute is named like the scale of attention; other numbers never follow a width."""
    return any(word in name for word in _SCALE_WORDS)


def rescale_(rescales: Sequence[Rescale], axes: AxisTable, alive: Tensor, before: Tensor) -> None:
    """Multiply rows so that a scale computed from a width that changed has the effect that it had.

    Attention divides by the square root of the width of a head: with exponent p, w^p x becomes v^p x, so x is
    multiplied by (w / v)^p.

    Args:
        rescales: As the trace noted them.
        axes: All tensor axes.
        alive: (L,) bool, labels in the model now.
        before: (L,) bool, labels in it before.
    """
    for entry in rescales:
        old, new = int(before[entry.width].sum()), int(alive[entry.width].sum())
        if old == new:
            continue
        factor = (old / new) ** entry.exponent
        chosen = torch.zeros(len(alive), dtype=torch.bool)
        chosen[entry.rows] = True
        chosen[0] = False
        for number in torch.unique(axes.axis_of(entry.rows[entry.rows != 0])).tolist():
            axis = axes.axes[number]
            own = slice(axis.base, axis.base + axis.size)
            rows = chosen[own][alive[own]]
            site = axis.sites[0]
            _scale_rows_(site, rows, factor)
            bias = axis.tensor.replace("weight", "bias")
            if bias != axis.tensor and getattr(site.module, bias, None) is not None:
                # Of experts each has a row of its own.
                _scale_rows_(CutSite(site.module, bias, getattr(site.module, bias).dim() - 1), rows, factor)


def rescale_factors(rescales: Sequence[Rescale], axes: AxisTable, alive: Tensor) -> dict[str, dict[int, float]]:
    """Return what filters have been multiplied by since the trace, by layer and by number of the filter.

    Args:
        rescales: As the trace noted them.
        axes: All tensor axes.
        alive: (L,) bool, labels in the model now.
    """
    found: dict[str, dict[int, float]] = {}
    for entry in rescales:
        factor = (len(entry.width) / int(alive[entry.width].sum())) ** entry.exponent
        rows = entry.rows[(entry.rows != 0)]
        for label, number in zip(rows.tolist(), axes.axis_of(rows).tolist(), strict=True):
            axis = axes.axes[number]
            if axis.tensor == "weight" and factor != 1:
                found.setdefault(axis.name, {})[label - axis.base] = factor
    return found


def renew_scales_(attributes: Sequence[ScaleAttribute], alive: Tensor, before: Tensor) -> None:
    """Give attributes that hold a power of a width the one of the width that it has now.

    Args:
        attributes: As the trace noted them.
        alive: (L,) bool, labels in the model now.
        before: (L,) bool, labels in it before.
    """
    for entry in attributes:
        new = int(alive[entry.width].sum())
        if new != int(before[entry.width].sum()):
            vars(entry.module)[entry.name] = float(new**entry.exponent)


def _scale_rows_(site: CutSite, rows: Tensor, factor: float) -> None:
    old = getattr(site.module, site.tensor)
    scale = torch.ones(len(rows), dtype=old.dtype, device=old.device)
    scale[rows.to(old.device)] = factor
    scaled = site.laid_out(old.detach()) * scale.view(-1, *(1,) * (len(site.sizes()) - site.axis - 1))
    site.module._parameters[site.tensor] = nn.Parameter(site.flat(scaled), requires_grad=old.requires_grad)
