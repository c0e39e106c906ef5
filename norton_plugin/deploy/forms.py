"""Choosing, block by block, the equivalent form that is fastest here (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, Form
from norton_plugin.deploy.latency import compare_latency
from norton_plugin.deploy.lowering import lower_block
from norton_plugin.errors import SurgeryError


@dataclass(frozen=True)
class FormChoice:
    """What was measured for one block.

    Attributes:
        name: Dotted name of the block.
        form: The fastest form, now set.
        milliseconds: Median time of every form on the largest input the block saw.
    """

    name: str
    form: Form
    milliseconds: dict[str, float]


def select_forms_(model: nn.Module, example_inputs: Any, *, rounds: int = 5) -> tuple[FormChoice, ...]:
    """Measure every form of every block on the inputs it really gets, and keep the fastest, in place.

    The forms are measured as ``lower_`` would build them, the dense convolution among them: a lowered block is not
    slower than the convolution it replaced. Weights, state dict and outputs (up to rounding) stay as they are.

    Args:
        model: Run in evaluation mode; flags are restored.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        rounds: Timed calls per form.

    Returns:
        A choice per block that the example reaches, in the order of their calls; the other blocks keep their form.

    Raises:
        SurgeryError: The model has no CPDBlock, or does not run on the example; all forms are as before then.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, ConvBlock)}
    if not blocks:
        raise SurgeryError("the model has no CPDBlock whose form could be chosen")
    inputs: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if name not in inputs or arguments[0].numel() > inputs[name].numel():
                inputs[name] = arguments[0].detach()

        return hook

    modes = [(module, module.training) for module in model.modules()]
    forms = [(block, block.form) for block in blocks.values()]
    handles = [block.register_forward_pre_hook(remember(name)) for name, block in blocks.items()]
    try:
        model.eval()
        with torch.no_grad():
            _run(model, example_inputs)
            for handle in handles:
                handle.remove()
            return tuple(_select_(n, blocks[n], x, rounds) for n, x in inputs.items())
    except BaseException:
        for block, form in forms:
            block.form = form
        raise
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


def _run(model: nn.Module, example_inputs: Any) -> None:
    try:
        if isinstance(example_inputs, dict):
            model(**example_inputs)
        elif isinstance(example_inputs, tuple | list):
            model(*example_inputs)
        else:
            model(example_inputs)
    except Exception as error:
        raise SurgeryError(
            f"the model does not run on the example inputs ({type(error).__name__}: {error}); give an example of the "
            "shape, dtype and device it expects"
        ) from error


def _select_(name: str, block: ConvBlock, x: Tensor, rounds: int) -> FormChoice:
    candidates = [lower_block(block, form).eval() for form in block.forms]

    def runner(candidate: nn.Module) -> Callable[[], Tensor]:
        return lambda: candidate(x)

    timing = compare_latency([runner(candidate) for candidate in candidates], rounds=rounds, warmup=1)
    milliseconds: dict[str, float] = {form: 1e3 * s for form, s in zip(block.forms, timing.seconds, strict=True)}
    block.form = min(block.forms, key=lambda form: milliseconds[form])
    return FormChoice(name, block.form, milliseconds)
