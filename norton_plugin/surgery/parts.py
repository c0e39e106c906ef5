"""The largest traceable parts of a model that cannot be traced as a whole, each with inputs of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from norton_plugin.channels import ChannelGraph
from norton_plugin.errors import TracingError
from norton_plugin.modules.running import ForwardFunction, run_model, traceable
from norton_plugin.reasons import Cause, Reason
from norton_plugin.surgery.report import WHOLE, Skipped

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """A module below the model, and what it was called with.

    Attributes:
        name: Its first dotted name.
        inputs: Positional and keyword arguments of its first call.
    """

    name: str
    inputs: Inputs


def run_parts(model: nn.Module, parts: Sequence[Part]) -> list[Any]:
    """Run every part on its inputs; a ``forward_fn`` whose example inputs are the parts' inputs.

    Args:
        model: Holds the parts by name.
        parts: Their inputs are not changed, even by a part that works in place.
    """
    outputs = []
    for part in parts:
        args, kwargs = tree_map(_clone, part.inputs)
        outputs.append(model.get_submodule(part.name)(*args, **kwargs))
    return outputs


def traceable_parts(
    model: nn.Module, example_inputs: Any, forward_fn: ForwardFunction | None, *, time_limit: float
) -> tuple[list[Part], list[Skipped]]:
    """Find the largest parts whose channels can be followed, from the top down.

    What a part reads and what it returns keep their width.

    Args:
        model: Cannot be traced as a whole, but runs.
        example_inputs: See ``run_model``.
        forward_fn: Replaces the plain call of the model.
        time_limit: Seconds after which no further part is tried.

    Returns:
        The parts, and those given up with the reason.
    """
    deadline = time.monotonic() + time_limit
    found: list[Part] = []
    failed: list[Skipped] = []
    frontier = _children(model, "")
    while frontier and time.monotonic() < deadline:
        start = time.monotonic()
        try:
            inputs = _record(model, frontier, example_inputs, forward_fn)
        except Exception as error:
            failed.append(Skipped(WHOLE, Reason.PARTS_NOT_RUN.from_error(error)))
            break
        deadline += time.monotonic() - start  # the model's own speed is not what is limited
        below: dict[str, nn.Module] = {}
        for name, module in frontier.items():
            if name in inputs:
                problem = _problem(module, inputs[name], deadline - time.monotonic())
                if problem is None:
                    found.append(Part(name, inputs[name]))
                    continue
                failed.append(Skipped(name, problem))
            below |= _children(module, name)
        frontier = below
    else:
        failed += [Skipped(name, Reason.TRACE_TIME.because()) for name in frontier]
    return found, failed


def _children(module: nn.Module, name: str) -> dict[str, nn.Module]:
    """Return modules one step down that hold layers of their own, by dotted name."""
    prefix = f"{name}." if name else ""
    return {f"{prefix}{n}": child for n, child in module.named_children() if any(True for _ in child.children())}


def _problem(module: nn.Module, inputs: Inputs, seconds: float) -> Cause | None:
    """Return why a part cannot be traced, or None."""
    alone = Part("", inputs)
    try:
        ChannelGraph(module, inputs, forward_fn=lambda net, _: run_parts(net, [alone]), time_limit=max(seconds, 0.0))
    except TracingError as error:
        return error.cause
    return None


def _record(
    model: nn.Module, modules: dict[str, nn.Module], example_inputs: Any, forward_fn: ForwardFunction | None
) -> dict[str, Inputs]:
    """Return what each of the modules is first called with in one run; those that are not called are absent."""
    inputs: dict[str, Inputs] = {}
    with traceable(model), _recording(modules, inputs):
        run_model(model, example_inputs, forward_fn)
    return inputs


@contextmanager
def _recording(modules: dict[str, nn.Module], inputs: dict[str, Inputs]) -> Iterator[None]:
    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in inputs:
                inputs[name] = tree_map(_clone, (args, kwargs))

        return hook

    handles = [m.register_forward_pre_hook(remember(name), with_kwargs=True) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _clone(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
