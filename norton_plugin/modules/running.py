"""Running a model on its example: one way to call it, one way to read its outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from norton_plugin.modules.run_state import preserved_state

ForwardFunction = Callable[[nn.Module, Any], Any]
# Largest relative difference between a model after surgery and what it has to equal.
TOLERANCE = 1e-4


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """While entered, run in evaluation mode without gradients, with the same random numbers every time.

    Flags, random generators, and what the model keeps of its runs are restored.
    """
    with evaluating(model), preserved_state(model):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Like `traceable`, for models that are changed meanwhile: flags and random generators alone are restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def run_model(model: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None = None) -> Any:
    """Call the model on its example: a tensor, a tuple of positional or a dict of keyword arguments."""
    if forward_fn is not None:
        return forward_fn(model, example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple | list):
        return model(*example_inputs)
    return model(example_inputs)


def counted_by(forward_fn: ForwardFunction | None) -> ForwardFunction | None:
    """Return what a model is run by where its cost is counted.

    A trace of channels may have to leave out what it cannot follow. Such a function has an attribute ``counted``: the
    function that runs all of the model.
    """
    return getattr(forward_fn, "counted", forward_fn)


def calibrated_by(forward_fn: ForwardFunction | None) -> ForwardFunction | None:
    """Return what a model is run by on images that it is calibrated on.

    A trace of channels may have to stand constants in the place of what a model reads. Such a function has an attribute
    ``calibrated``: one that runs the model on what it really reads. Several passes of one model may be under way at a
    time.
    """
    return getattr(forward_fn, "calibrated", forward_fn)


def distilled_by(forward_fn: ForwardFunction | None) -> ForwardFunction | None:
    """Return what a model is run by where its outputs are held against those of another one.

    Outputs that a model computes of what it chose itself, as of the regions that a detector proposes, cannot be
    compared. Such a function has an attribute ``distilled``: one that returns all others.
    """
    return getattr(forward_fn, "distilled", calibrated_by(forward_fn))


def fixed_batch(forward_fn: ForwardFunction | None) -> int | None:
    """Return how many images a function takes, its attribute ``batch``; None where it takes any number."""
    found: int | None = getattr(forward_fn, "batch", None)
    return found


def takes_one_size(forward_fn: ForwardFunction | None) -> bool:
    """Tell whether a function takes images of one size alone, its attribute ``one_size``."""
    return bool(getattr(forward_fn, "one_size", False))


def is_unordered(forward_fn: ForwardFunction | None) -> bool:
    """Tell whether a function returns things found, one row of every output for each, in the order of their scores.

    Where scores are nearly equal, rounding decides on the order and on what is left out. Such a function has an
    attribute ``unordered``; a method ``telling``, ``(model, inputs) -> forward_fn`` that finds something in them; and a
    method ``own_steps``, ``(model, inputs) -> mapping`` of those outputs that the model as it is returns, too.
    """
    return bool(getattr(forward_fn, "unordered", False))


def varied(example_inputs: Any) -> Any:
    """Return the example with random values in place of tensors of a single value, such as zeros.

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


def repeated(inputs: Any, times: int) -> Any:
    """Repeat the images of an example, along the first axis of its tensors; whatever else it holds stays.

    Args:
        inputs: As of ``run_model``.
        times: How often.
    """

    def repeat(leaf: Any) -> Any:
        return leaf.repeat(times, *[1] * (leaf.dim() - 1)) if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return tree_map(repeat, inputs)


def output_tensors(output: Any) -> list[Tensor]:
    """Return all floating-point tensors of an output, whatever it is nested in."""
    leaves = tree_leaves(output)
    plain = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    for leaf in leaves:
        if not isinstance(leaf, Tensor) and hasattr(leaf, "__dict__"):
            plain += output_tensors(dict(vars(leaf)))
    return plain


def compared_outputs(
    model: nn.Module,
    example_inputs: Any,
    forward_fn: ForwardFunction | None = None,
    *,
    watched: Sequence[nn.Module] = (),
    watched_only: bool = False,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Return the tensors by which two versions of a model are compared: its outputs, in double precision.

    Args:
        model: Run once in evaluation mode.
        example_inputs: See ``run_model``.
        forward_fn: Replaces the plain call.
        watched: Modules whose outputs take the place of the model's where those hold no number at all, such as the
            boxes of a detector that found nothing.
        watched_only: Take those in any case, where there are any.
        dtype: What floating-point inputs are cast to.
    """
    example_inputs = tree_map(lambda leaf: _cast(leaf, dtype), example_inputs)
    seen: list[Tensor] = []
    handles = [m.register_forward_hook(lambda _, args, output: seen.extend(output_tensors(output))) for m in watched]
    try:
        with traceable(model):
            outputs = output_tensors(run_model(model, example_inputs, forward_fn))
    finally:
        for handle in handles:
            handle.remove()
    if (watched_only and seen) or not any(tensor.numel() for tensor in outputs):
        outputs = seen
    return [tensor.detach().double() for tensor in outputs if tensor.numel()]


def _cast(leaf: Any, dtype: torch.dtype | None) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


@contextmanager
def in_double_precision(model: nn.Module) -> Iterator[None]:
    """While entered, parameters and buffers are in double precision; the very same objects and values come back."""
    parameters = [(p, p.data) for p in model.parameters() if p.is_floating_point()]
    buffers = [
        (module._buffers, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_floating_point()
    ]
    try:
        for parameter, data in parameters:
            parameter.data = data.double()
        for owner, name, buffer in buffers:
            owner[name] = buffer.double()
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for owner, name, buffer in buffers:
            owner[name] = buffer


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference over all outputs, relative to the largest finite expected value of each.

    Returns:
        Infinity where shapes differ, or where one of two values is not finite and they are not equal: minus infinity,
        as masks have it, equals itself, NaN does not.
    """
    worst = 0.0
    if len(actual) != len(expected):
        return float("inf")
    for got, want in zip(actual, expected, strict=True):
        if got.shape != want.shape:
            return float("inf")
        if want.numel() == 0:
            continue
        scale = torch.where(want.isinf(), 0.0, want.abs()).max().clamp_min(torch.finfo(torch.float32).tiny)
        error = torch.where(got == want, 0.0, (got - want).abs()).max().double() / scale.double()
        worst = max(worst, float(error) if bool(error.isfinite()) else float("inf"))
    return worst
