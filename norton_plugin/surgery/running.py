"""Running a model on its example: one way to call it, one way to read its outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

ForwardFunction = Callable[[nn.Module, Any], Any]


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients for all parameters, as tracing needs it; exact flags come back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
        model.eval()
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def run_model(model: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None = None) -> Any:
    """Calls the model on its example: a tensor, a tuple of positional or a dict of keyword arguments."""
    if forward_fn is not None:
        return forward_fn(model, example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple | list):
        return model(*example_inputs)
    return model(example_inputs)


def varied(example_inputs: Any) -> Any:
    """The example with random values in place of tensors that hold one value alone, such as zeros.

    A pruned model would agree with a masked one on such an image even where it is wrong.
    """
    generator = torch.Generator().manual_seed(0)

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.numel() < 2:
            return leaf
        if bool((leaf != leaf.flatten()[0]).any()):
            return leaf
        return torch.randn(leaf.shape, generator=generator).to(leaf)

    return tree_map(fill, example_inputs)


def output_tensors(output: Any) -> list[Tensor]:
    """All floating-point tensors of an output, whatever it is nested in."""
    leaves = tree_leaves(output)
    plain = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    for leaf in leaves:
        if not isinstance(leaf, Tensor) and hasattr(leaf, "__dict__"):
            plain += output_tensors(dict(vars(leaf)))
    return plain


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference over all outputs, relative to the largest expected value of each.

    Returns:
        Infinity where shapes differ or a value is not finite.
    """
    worst = 0.0
    if len(actual) != len(expected):
        return float("inf")
    for got, want in zip(actual, expected, strict=True):
        if got.shape != want.shape:
            return float("inf")
        if want.numel() == 0:
            continue
        scale = want.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        error = float(((got - want).abs().max() / scale).nan_to_num(nan=float("inf")))
        worst = max(worst, error)
    return worst
