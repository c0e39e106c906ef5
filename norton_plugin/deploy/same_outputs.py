"""Whether a model that was made ready for inference still computes what it did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from norton_plugin.modules.running import ForwardFunction, output_tensors, relative_error, run_model, traceable

# Largest relative difference of the outputs of one layer, and of a whole model: that many times as much.
_SAME_LAYER = {torch.float32: 1e-4, torch.float64: 1e-9}
_SAME_LAYER_HALF = 2e-2
_WHOLE_MODEL = 10
_ROUNDING = 1e-6  # what inputs are changed by to see whether a model's outputs can be compared at all


def layer_tolerance(layer: nn.Module) -> float:
    """Return the largest relative difference that rounding may make in the outputs of a layer, by its dtype."""
    dtype = next((p.dtype for p in layer.parameters() if p.is_floating_point()), torch.float32)
    return _SAME_LAYER.get(dtype, _SAME_LAYER_HALF)


def outputs_of(model: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None) -> list[Tensor]:
    """Run a model in evaluation mode and return its tensors; arguments as of ``run_model``."""
    with traceable(model):
        return output_tensors(run_model(model, example_inputs, forward_fn))


def difference(
    model: nn.Module,
    example_inputs: Any,
    forward_fn: ForwardFunction | None,
    expected: list[Tensor],
    *,
    tolerance: float,
) -> float | None:
    """Return by how much, relatively, a model's outputs are not those expected.

    Args:
        model: As it is now.
        example_inputs: See ``run_model``.
        forward_fn: Likewise.
        expected: Its outputs as it was.
        tolerance: As of `layer_tolerance`.

    Returns:
        None where rounding may be the reason. Detectors sort boxes by scores that hardly differ: their outputs change
        with the last digit of the input. Infinity where NaN was expected, with which nothing can be compared.
    """
    allowed = _WHOLE_MODEL * tolerance
    found = outputs_of(model, example_inputs, forward_fn)
    error = relative_error(found, expected)
    if error <= allowed:
        return None
    if any(bool(want.isnan().any()) for want in expected):
        return float("inf")
    rounded = outputs_of(model, _rounded(example_inputs), forward_fn)
    return None if relative_error(rounded, found) > allowed else error


def _rounded(example_inputs: Any) -> Any:
    """Return inputs that differ by about a rounding error."""
    generator = torch.Generator().manual_seed(0)

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf * (1 + _ROUNDING * torch.randn(leaf.shape, generator=generator)).to(leaf)

    return tree_map(change, example_inputs)
