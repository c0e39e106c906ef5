"""Choosing, block by block, the equivalent form that is fastest here (docs/method.md, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.blocks import FORMS, CPDBlock, Form
from norton_plugin.deploy.inputs import largest_inputs
from norton_plugin.deploy.latency import compare_latency
from norton_plugin.deploy.lowering import lower_block
from norton_plugin.modules.running import ForwardFunction


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


def select_forms_(
    model: nn.Module, example_inputs: Any, *, rounds: int = 5, forward_fn: ForwardFunction | None = None
) -> tuple[FormChoice, ...]:
    """Measure every form of every CPDBlock on the inputs it really gets, and keep the fastest, in place.

    The forms are measured as ``lower_`` would build them, the dense convolution among them: a lowered block is not
    slower than the convolution it replaced. Weights, state dict and outputs (up to rounding) stay as they are.
    ``prepare(model, example, forms="measured")`` also folds norms, lowers, and chooses the memory format.

    Args:
        model: Run in evaluation mode; flags are restored.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        rounds: Timed calls per form.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call, as of ``compress``.

    Returns:
        A choice per block that the example reaches, in the order of their calls; the other blocks keep their form.
        Empty for a model without blocks, such as one that was only pruned.

    Raises:
        SurgeryError: The model does not run on the example; all forms are as before then.
    """
    blocks = {module: name for name, module in model.named_modules() if isinstance(module, CPDBlock)}
    if not blocks:
        return ()
    modes = [(module, module.training) for module in model.modules()]
    forms = [(block, block.form) for block in blocks]
    try:
        model.eval()
        with torch.no_grad():
            inputs = largest_inputs(model, blocks, example_inputs, forward_fn)
            return tuple(_select_(blocks[m], m, x, rounds) for m, x in inputs.items() if isinstance(m, CPDBlock))
    except BaseException:
        for block, form in forms:
            block.form = form
        raise
    finally:
        for module, mode in modes:
            module.training = mode


def _select_(name: str, block: CPDBlock, x: Tensor, rounds: int) -> FormChoice:
    candidates = [lower_block(block, form).eval() for form in FORMS]

    def runner(candidate: nn.Module) -> Callable[[], Tensor]:
        return lambda: candidate(x)

    timing = compare_latency([runner(candidate) for candidate in candidates], rounds=rounds, warmup=1)
    milliseconds: dict[str, float] = {form: 1e3 * s for form, s in zip(FORMS, timing.seconds, strict=True)}
    fastest = min(FORMS, key=lambda form: milliseconds[form])
    block.form = fastest
    return FormChoice(name, fastest, milliseconds)
