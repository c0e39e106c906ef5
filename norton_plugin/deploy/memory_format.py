"""Memory formats of a model's weights, and whether the model runs in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks.convolutions import CHANNELS_LAST
from norton_plugin.deploy.region_pooling import needs_contiguous_maps
from norton_plugin.deploy.same_outputs import difference, layer_tolerance, outputs_of
from norton_plugin.modules.running import ForwardFunction, repeated

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def lay_out_(model: nn.Module, memory: torch.memory_format) -> nn.Module:
    """Lay out all weights of convolutions in a memory format, in place; those of 3-D ones in its form for 5 axes."""
    return model._apply(lambda tensor: laid_out(tensor, memory))


def laid_out(x: Tensor, memory: torch.memory_format) -> Tensor:
    """Return a map (B, C, H, W) or (B, C, D, H, W), or a weight, in a memory format; any other tensor as it is.

    Args:
        x: Of any number of axes.
        memory: A value of ``FORMATS``; ``torch.channels_last`` stands for ``torch.channels_last_3d`` too.
    """
    axes = x.dim() - 2
    if axes not in CHANNELS_LAST:
        return x
    return x.to(memory_format=CHANNELS_LAST[axes] if memory == torch.channels_last else memory)


def runs_in_(
    model: nn.Module, memory_format: str, example_inputs: Any, *, forward_fn: ForwardFunction | None = None
) -> bool:
    """Lay out a model in place and tell whether it computes the same so; where not, it is contiguous afterwards.

    In ``channels_last`` a model fails that takes ``x.view(len(x), -1)`` of a map, if only of more images than one, and
    operators that read memory as it lies return wrong values. Those of mmcv are known, and a model with them is not
    tried, nor is one of whose outputs none is floating-point: there is nothing to compare.

    Args:
        model: Runs in the contiguous format.
        memory_format: A key of ``FORMATS``.
        example_inputs: See ``modules.running.run_model``.
        forward_fn: Likewise.
    """
    lay_out_(model, torch.contiguous_format)
    if memory_format == "contiguous":
        return True
    if needs_contiguous_maps(model):
        return False
    expected = outputs_of(model, example_inputs, forward_fn)
    if not expected:
        return False
    lay_out_(model, FORMATS[memory_format])
    try:
        same = difference(model, example_inputs, forward_fn, expected, tolerance=layer_tolerance(model)) is None
    except Exception:  # whatever it raises in this format alone
        same = False
    several = repeated(example_inputs, 3)  # views of maps may be fine with one image
    if same and _runs(model, several, forward_fn):
        return True
    lay_out_(model, torch.contiguous_format)
    if same and not _runs(model, several, forward_fn):  # in no format
        lay_out_(model, FORMATS[memory_format])
        return True
    return False


def _runs(model: nn.Module, inputs: Any, forward_fn: ForwardFunction | None) -> bool:
    try:
        outputs_of(model, inputs, forward_fn)
    except Exception:
        return False
    return True
