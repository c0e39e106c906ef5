"""A compressed model made ready for inference: its blocks lowered in fast forms, its norms folded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from norton_plugin.blocks import FORMS, CPDBlock, CPDLinear, Form, form_for
from norton_plugin.deploy.folding import FoldReport, fold_
from norton_plugin.deploy.inputs import largest_inputs
from norton_plugin.deploy.lowering import lower_block
from norton_plugin.errors import RecipeError, SurgeryError
from norton_plugin.modules.duplication import duplicate
from norton_plugin.modules.running import ForwardFunction
from norton_plugin.modules.swap import names_by_identity, swap_

LINEAR: Literal["linear"] = "linear"  # the one form of a CPDLinear


@dataclass(frozen=True)
class BlockChoice:
    """The form that one block was lowered in.

    Attributes:
        name: Dotted name of the block.
        form: The form; ``"linear"`` for a CPDLinear, which has one only.
        milliseconds: Median time of the form where it was measured, else None.
        reason: Why this one, in words.
    """

    name: str
    form: Form | Literal["linear"]
    milliseconds: float | None
    reason: str


@dataclass(frozen=True)
class PreparedModel:
    """A model for inference.

    Attributes:
        model: Lowered and folded, in evaluation mode; a copy.
        table: One entry per block, in the model's order; empty for a model that was only pruned.
        folded: Dotted names of the norms that were folded.
        left: Dotted names of the norms that were not, each with the reason.
    """

    model: nn.Module
    table: tuple[BlockChoice, ...]
    folded: tuple[str, ...]
    left: tuple[tuple[str, str], ...]


def prepare(
    model: nn.Module,
    example_inputs: Any,
    *,
    forms: Literal["static", "measured"] | Mapping[str, str] = "static",
    fold: bool = True,
    forward_fn: ForwardFunction | None = None,
) -> PreparedModel:
    """Make a copy of a model that computes the same, for inference alone, as fast as can be had.

    Args:
        model: Compressed, or not: it is left as it is.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments, as the model will get them.
        forms: ``"static"`` chooses by the sizes of each block and its input, at once; a mapping of names of blocks to
            forms takes what was chosen before.
        fold: Whether BatchNorms are folded into the layers before them (``fold_``).
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call, as of ``compress``.

    Returns:
        The copy and what was done.

    Raises:
        SurgeryError: The model is itself a block, cannot be copied, or does not run on the example.
        RecipeError: Unknown forms, or a mapping that names no block of the model.
    """
    copied = duplicate(model)
    copied.eval()
    named = names_by_identity(copied)
    blocks = {module: names[0] for module, names in named.items() if isinstance(module, CPDBlock | CPDLinear)}
    if isinstance(copied, CPDBlock | CPDLinear):
        raise SurgeryError(f"the model is itself a {type(copied).__name__}; use lower_block(model)")
    inputs = largest_inputs(copied, blocks, example_inputs, forward_fn)
    chosen = {block: _choice(name, block, inputs.get(block), forms) for block, name in blocks.items()}
    swap_(
        copied,
        {block: lower_block(block, None if choice.form == LINEAR else choice.form) for block, choice in chosen.items()},
    )
    report = fold_(copied, example_inputs, forward_fn=forward_fn) if fold else FoldReport((), ())
    return PreparedModel(copied, tuple(chosen.values()), report.folded, report.left)


def _choice(name: str, block: nn.Module, x: Tensor | None, forms: str | Mapping[str, str]) -> BlockChoice:
    if not isinstance(block, CPDBlock):
        return BlockChoice(name, LINEAR, None, "a Linear layer has one form")
    if isinstance(forms, Mapping) and name in forms:
        if forms[name] not in FORMS:
            raise RecipeError(f"the form of {name} is {forms[name]!r}; expected one of {FORMS}")
        return BlockChoice(name, forms[name], None, "as given")  # type: ignore[arg-type]
    form, reason = form_for(block, x)
    return BlockChoice(name, form, None, reason if x is not None else f"{reason}; the example does not reach it")
