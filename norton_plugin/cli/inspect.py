"""``norton inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from norton_plugin.cli import options
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import read_path
from norton_plugin.errors import RecipeError

if TYPE_CHECKING:
    from norton_plugin.cli.models import Opened
    from norton_plugin.insight import FittedTable, InspectedLayer, Inspection
    from norton_plugin.recipe import Scope

_CURVE = "Cost curves"


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
    curve: Annotated[
        bool,
        typer.Option(
            "--curve", help="Show cost by rank and components instead, level by level.", rich_help_panel=_CURVE
        ),
    ] = False,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="PATTERN", help="Only of layers named so; repeatable.", rich_help_panel=_CURVE),
    ] = None,
    nmse: Annotated[
        bool,
        typer.Option("--nmse", help="Also the error of each point on the model's weights.", rich_help_panel=_CURVE),
    ] = False,
    latency_table: Annotated[
        Path | None,
        typer.Option(
            "--latency-table",
            metavar="PATH",
            help="The latency.json of an artefact, or its directory: milliseconds of the whole model's front.",
            parser=read_path,
            rich_help_panel=_CURVE,
        ),
    ] = None,
) -> None:
    """List a model's layers with their cost, and up to which rank or components a decomposition saves MACs.

    With --curve: what each level of sharing costs, from rank 1 to the break-even, for layers of every shape, and what
    the whole model loses at each cost, with the best sizes of all layers.

    Example: norton inspect timm:resnet18 --input-size 224

    Example: norton inspect timm:resnet18 --pretrained --curve --nmse --layer layer4.1.conv2
    """
    from norton_plugin.cli.models import open_model
    from norton_plugin.insight import inspect_model
    from norton_plugin.recipe import Scope

    given = {"--layer": layer, "--nmse": nmse, "--latency-table": latency_table}
    if not curve and any(given.values()):
        raise RecipeError(
            f"{next(name for name, value in given.items() if value)} says what --curve shows; add --curve"
        )
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
        if curve:
            _show_curves(out, opened, scope=scope, layers=layer or (), nmse=nmse, table=latency_table)
            return
        found = inspect_model(opened.model, opened.example_inputs, scope=scope, forward_fn=opened.forward_fn)
    out.show(_table(found, source), _totals(found))
    out.result({"source": opened.spec, "input_size": list(opened.preprocessing.input_size), **asdict(found)})


def _show_curves(
    out: Output, opened: Opened, *, scope: Scope, layers: Sequence[str], nmse: bool, table: Path | None
) -> None:
    from norton_plugin.insight import cost_curves, curve_tables, front_table, model_front

    asked: dict[str, Any] = {"scope": scope, "layers": layers, "nmse": nmse, "forward_fn": opened.forward_fn}
    curves = cost_curves(opened.model, opened.example_inputs, **asked)
    front = model_front(opened.model, opened.example_inputs, scope=scope, table=table, forward_fn=opened.forward_fn)
    out.show(*curve_tables(curves))
    out.show(
        "MACs are a share of the dense layer's. A row holds, level by level, as many components as need no more MACs "
        "than the first column: filter, the rank of every filter; layer, components that all filters share; clusters, "
        "components that the filters of a cluster share; spatial, components of a spatial SVD."
        + (" NMSE: ||W - W^||^2 / ||W||^2, without any fine-tuning." if nmse else "")
    )
    out.show(front_table(front))
    out.show(
        "The best sizes of all layers within each share of the MACs, at level auto, Linear layers too. Error: -log of "
        "the share of each weight that stays, summed over layers, foretold without decomposing; signal kept: "
        "exp(-error), before any fitting."
    )
    out.result(
        {
            "source": opened.spec,
            "curves": [asdict(each) for each in curves],
            "front": [{**asdict(each), "kept": each.kept} for each in front],
        }
    )


def _table(found: Inspection, source: str) -> FittedTable:
    from norton_plugin.insight import Column, FittedTable, percent, short

    columns = (
        Column("layer"),
        Column("kind", optional=4),
        Column("kernel", number=True, optional=1),
        Column("in", number=True),
        Column("out", number=True),
        Column("MACs", number=True),
        Column("share", number=True, optional=2),
        Column("parameters", number=True, optional=3),
        Column("rank\nup to", number=True),
        Column("M\nup to", number=True),
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
            "-" if layer.break_even_components is None else str(layer.break_even_components),
            _decompose(layer),
            style="" if layer.eligible or layer.shared else "dim",
        )
    return table


def _decompose(layer: InspectedLayer) -> str:
    from norton_plugin.pipeline import size_in_words

    if layer.eligible:
        return "yes"
    if layer.level is not None:
        return f"done: {size_in_words(layer)}"
    return "at level layer" if layer.shared else f"{layer.code}: {layer.reason}"


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
    more = [layer for layer in found.layers if layer.shared and not layer.eligible]
    others = sum(layer.macs for layer in more) / found.macs if found.macs else 0.0
    return (
        f"{short(found.macs)} MACs, {short(found.parameters)} parameters; {len(chosen)} of {len(found.layers)} layers "
        f"can be decomposed and hold {percent(share)} of the MACs, {len(more)} more at level layer (1x1, Linear) hold "
        f"{percent(others)}; docs/reasons.md explains why others cannot. Up to these sizes a block needs fewer MACs "
        "than the layer: rank per filter (level filter), or M components in all (level layer)"
    )
