"""``norton inspect``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from norton_plugin.cli import options
from norton_plugin.cli.output import Output

if TYPE_CHECKING:
    from norton_plugin.insight import FittedTable, InspectedLayer, Inspection


def inspect(
    out: Output,
    source: options.SourceArgument,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    trust_code: options.TrustCode = False,
    include: Annotated[
        list[str] | None, typer.Option("--include", metavar="PATTERN", help="Only layers named so; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="PATTERN", help="Never layers named so; repeatable.")
    ] = None,
) -> None:
    """List a model's layers with their cost, their break-even rank, and what can be decomposed.

    Example: norton inspect timm:resnet18 --input-size 224
    """
    from norton_plugin.cli.models import open_model
    from norton_plugin.insight import inspect_model
    from norton_plugin.recipe import Scope

    scope = Scope(include=tuple(include or ()), exclude=tuple(exclude or ()))
    with out.status(f"building {source}"):
        opened = open_model(
            source,
            pretrained=pretrained,
            checkpoint=checkpoint,
            num_classes=num_classes,
            input_size=options.parse_input_size(input_size),
            trust_code=trust_code,
        )
        found = inspect_model(opened.model, opened.example_inputs, scope=scope, forward_fn=opened.forward_fn)
    out.show(_table(found, source), _totals(found))
    out.result({"source": opened.spec, "input_size": list(opened.preprocessing.input_size), **asdict(found)})


def _table(found: Inspection, source: str) -> FittedTable:
    from norton_plugin.insight import Column, FittedTable, percent, short

    columns = (
        Column("layer"),
        Column("kind", optional=3),
        Column("kernel", number=True),
        Column("in", number=True),
        Column("out", number=True),
        Column("MACs", number=True),
        Column("share", number=True, optional=1),
        Column("parameters", number=True, optional=2),
        Column("break-\neven", number=True),
        Column("decompose"),
    )
    table = FittedTable(source, columns)
    for layer in found.layers:
        table.add_row(
            layer.name,
            layer.kind,
            _kernel(layer),
            str(layer.in_channels),
            str(layer.out_channels),
            short(layer.macs),
            percent(layer.macs / found.macs) if found.macs else "-",
            short(layer.parameters),
            "-" if layer.break_even is None else str(layer.break_even),
            "yes" if layer.eligible else f"{layer.code}: {layer.reason}",
            style="" if layer.eligible else "dim",
        )
    return table


def _kernel(layer: InspectedLayer) -> str:
    if layer.kernel is None:
        return "-"
    text = "x".join(map(str, layer.kernel))
    if layer.stride is not None and max(layer.stride) > 1:
        text += " /" + "x".join(map(str, dict.fromkeys(layer.stride)))
    return text + (f" g{layer.groups}" if layer.groups > 1 else "")


def _totals(found: Inspection) -> str:
    from norton_plugin.insight import percent, short

    chosen = [layer for layer in found.layers if layer.eligible]
    share = sum(layer.macs for layer in chosen) / found.macs if found.macs else 0.0
    return (
        f"{short(found.macs)} MACs, {short(found.parameters)} parameters; {len(chosen)} of {len(found.layers)} layers "
        f"can be decomposed and hold {percent(share)} of the MACs; docs/reasons.md explains why others cannot"
    )
