"""What a compressed model runs in place of its factors, for the terminal."""

from __future__ import annotations

from typing import Any

from torch import nn

from norton_plugin.blocks import ConvBlock, Form, form_for
from norton_plugin.blocks.form_choice import shape_of_input
from norton_plugin.blocks.stages import BlockShape, stages
from norton_plugin.deploy.inputs import largest_inputs
from norton_plugin.insight.numbers import short
from norton_plugin.modules.running import ForwardFunction
from norton_plugin.modules.swap import names_by_identity
from norton_plugin.pipeline import CompressionReport


def note_on_forms(
    model: nn.Module, example_inputs: Any, report: CompressionReport, *, forward_fn: ForwardFunction | None = None
) -> str | None:
    """Return a sentence on the blocks that run as plain convolutions; None where none does.

    MACs of a report are those of the factors. A block that should be no faster in factors, as one on a small map, runs
    in its dense form, so that fewer MACs are saved than the report says, and no time.

    Args:
        model: The compressed model, on the device it is to run on.
        example_inputs: A tensor, a tuple of positional or a dict of keyword arguments.
        report: Of the model.
        forward_fn: ``(model, example_inputs) -> output`` in place of the plain call.

    Raises:
        SurgeryError: The model does not run on the example.
    """
    blocks = {module: names for module, names in names_by_identity(model).items() if isinstance(module, ConvBlock)}
    if not blocks:
        return None
    by_factors = {layer.name: layer.macs_after for layer in report.layers}
    dense, run = 0, float(report.macs_after)
    for block, x in largest_inputs(model, blocks, example_inputs, forward_fn).items():
        if not isinstance(block, ConvBlock):
            continue
        form, shape = form_for(block, x)[0], shape_of_input(block, x)
        dense += form == "dense"
        factors = sum(by_factors.get(name, 0) for name in blocks[block])
        run += factors * (_macs(shape, form) / _macs(shape, "separable") - 1)
    if not dense:
        return None
    timed = report.budget is not None and report.budget.budget.latency is not None
    remedy = (
        "measures each, as the budget of milliseconds did, and writes the model that takes that time"
        if timed
        else "measures each; where time is to be saved, give a budget of milliseconds (budget.latency, --budget "
        "latency=F)"
    )
    return (
        f"{dense} of {len(blocks)} blocks should be no faster in factors than as a plain convolution on inputs of this "
        f"size, and run as one: {short(round(run))} MACs run, not {short(report.macs_after)}. 'norton deploy' {remedy}"
    )


def _macs(shape: BlockShape, form: Form) -> int:
    return sum(stage.macs for stage in stages(shape, form))
