"""The choice of forms and of the memory format that nothing is measured for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from norton_plugin.blocks import ConvBlock, form_for
from norton_plugin.blocks.convolutions import LAYERS
from norton_plugin.blocks.form_choice import estimate, shape_of_input
from norton_plugin.deploy.memory_format import FORMATS, laid_out
from norton_plugin.deploy.table import LINEAR, MEMORY_FORMATS, BlockChoice, DeploymentTable
from norton_plugin.errors import RecipeError

Forms = Literal["static", "measured"] | Mapping[str, str] | DeploymentTable
_CONVOLUTIONS = (*LAYERS.values(), ConvBlock)
_WORTH = 1.1  # times faster that blocks should be with their channels last, for a model to be laid out so


def given_forms(forms: Forms, names: list[str]) -> Mapping[str, str]:
    """Return the forms that are given.

    Args:
        forms: As of ``prepare``.
        names: Of the model's blocks.

    Raises:
        RecipeError: An unknown word, or the name of a block that is not there.
    """
    if isinstance(forms, str) and forms not in ("static", "measured"):
        raise RecipeError(f"forms is {forms!r}; expected 'static', 'measured', or a table")
    given = forms.forms if isinstance(forms, DeploymentTable) else forms if isinstance(forms, Mapping) else {}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise RecipeError(
            f"the table names the block {unknown[0]!r}, which the model does not have ({len(unknown)} such names); "
            "give the table of this very model"
        )
    return given


def choose(name: str, block: nn.Module, x: Tensor | None, given: Mapping[str, str], memory_format: str) -> BlockChoice:
    """Choose the form of one block: the one that is given, or the one that should be fastest.

    Args:
        name: Of the block.
        block: A block of factors.
        x: Its largest input, None where the example does not reach it.
        given: Forms by names.
        memory_format: Of the model.

    Raises:
        RecipeError: The form that is given is unknown.
    """
    if not isinstance(block, ConvBlock):
        return BlockChoice(name, LINEAR, None, "a Linear layer has one form")
    for form in block.forms:
        if given.get(name) == form:
            return BlockChoice(name, form, None, "as given")
    if name in given:
        raise RecipeError(f"the form of {name} is {given[name]!r}; expected one of {block.forms}")
    chosen, reason = form_for(block, None if x is None else laid_out(x, FORMATS[memory_format]))
    return BlockChoice(name, chosen, None, reason if x is not None else f"{reason}; the example does not reach it")


def static_memory_format(model: nn.Module, inputs: Mapping[nn.Module, Tensor]) -> str:
    """Choose the memory format in which a model should be fastest.

    On a CPU that is ``channels_last`` for every model of 2-D convolutions: measured, 18 networks run 0.95 to 2.2 times
    as fast so, 1.2 in the median, and one of 3-D convolutions 0.8 to 1.1 times. Elsewhere it is the one in which the
    blocks should be fastest, each in its best form.

    Args:
        model: With its blocks, or without any.
        inputs: The largest input of every block.
    """
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        axes = {len(module.kernel_size) for module in model.modules() if isinstance(module, _CONVOLUTIONS)}
        return "channels_last" if 2 in axes and 3 not in axes else "contiguous"
    totals = dict.fromkeys(MEMORY_FORMATS, 0.0)
    for block, x in inputs.items():
        if isinstance(block, ConvBlock):
            shape = shape_of_input(block, x)
            for name in MEMORY_FORMATS:
                last = name == "channels_last"
                found = estimate(shape, device=x.device.type, channels_last=last, lowered=True)
                totals[name] += min(found.values())
    return "channels_last" if totals["contiguous"] > _WORTH * totals["channels_last"] else "contiguous"
