"""``norton compress``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from norton_plugin.cli import options
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_file, existing_folder, read_path
from norton_plugin.cli.recipes import RECIPE, merge, read_recipe, write_recipe
from norton_plugin.errors import RecipeError
from norton_plugin.recipe import Recipe

_RECIPE = "What to do (over the recipe file)"
_DATA = "Data"
_STEPS = {
    "measure": "counting MACs",
    "decompose": "decomposing filters",
    "prune": "pruning filters",
    "calibrate": "re-estimating BatchNorm statistics",
}


def compress(
    out: Output,
    source: options.SourceArgument,
    output: options.OutputDirectory,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            parser=read_path,
            callback=existing_file,
            metavar="FILE",
            help="Recipe in YAML or JSON.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option("--rank", metavar="N|auto|none", help="Rank of every layer.", rich_help_panel=_RECIPE),
    ] = None,
    rank_for: Annotated[
        list[str] | None,
        typer.Option(
            "--rank-for", metavar="PATTERN=N", help="Rank of layers named so; repeatable.", rich_help_panel=_RECIPE
        ),
    ] = None,
    target_nmse: Annotated[
        str | None,
        typer.Option("--target-nmse", metavar="F", help="Error that --rank auto aims at.", rich_help_panel=_RECIPE),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option("--keep", metavar="F", help="Share of the filters to keep, in (0, 1].", rich_help_panel=_RECIPE),
    ] = None,
    keep_for: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-for", metavar="PATTERN=F", help="Share in layers named so; repeatable.", rich_help_panel=_RECIPE
        ),
    ] = None,
    round_to: Annotated[
        int | None,
        typer.Option("--round-to", metavar="N", help="Channel counts become multiples of it.", rich_help_panel=_RECIPE),
    ] = None,
    criterion: Annotated[
        str | None,
        typer.Option("--criterion", metavar="NAME", help="pabs, vbd or csa.", rich_help_panel=_RECIPE),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATTERN", help="Only layers named so; repeatable.", rich_help_panel=_RECIPE),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude", metavar="PATTERN", help="Never layers named so; repeatable.", rich_help_panel=_RECIPE
        ),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Do not compare pruned groups with masked ones.", rich_help_panel=_RECIPE),
    ] = False,
    calibration_data: Annotated[
        Path | None,
        typer.Option(
            "--calibration-data",
            parser=read_path,
            callback=existing_folder,
            metavar="DIR",
            help="Image folder to re-estimate BatchNorm statistics on; labels are not used.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    workers: options.Workers = 0,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    trust_code: options.TrustCode = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="Of ALS, random weights and the images' order.")
    ] = None,
) -> None:
    """Decompose and prune a model, and write it with its report and recipe as an artefact.

    A PATTERN is a dotted name (with all below it), a wildcard such as '*.conv2', or 're:' and a regular expression.

    Example: norton compress timm:resnet18 --pretrained --rank 3 --keep 0.7 -o resnet18-small
    """
    from norton_plugin.cli.images import calibration_batches, open_images
    from norton_plugin.cli.models import check_directory, open_model, save_model
    from norton_plugin.insight import layers_table, skipped_table, totals_table
    from norton_plugin.pipeline import compress as run

    number, rank_table = options.parse_number, _table("--rank-for", rank_for, options.parse_rank)
    settings = {
        "scope": {"include": include, "exclude": exclude},
        "decomposition": {"ranks": rank_table, "target_nmse": _parsed(target_nmse, number), "seed": seed},
        "pruning": {"keep": _parsed(keep, number), "keeps": _table("--keep-for", keep_for, number)},
    }
    settings["pruning"] |= {"round_to": round_to, "criterion": criterion}
    changes = {section: _given(**values) for section, values in settings.items()}
    if rank is not None:
        changes["decomposition"]["rank"] = options.parse_rank(rank)  # "none" leaves all dense, and was given
    chosen = merge(read_recipe(recipe) if recipe else Recipe(), changes, verify=False if no_verify else None)
    if not (chosen.decomposition.active or chosen.pruning.active):
        raise RecipeError("there is nothing to do: give --rank, --keep below 1, or a --recipe that sets one of them")
    check_directory(output)
    with out.status(f"building {source}") as status:
        opened = open_model(
            source,
            pretrained=pretrained,
            checkpoint=checkpoint,
            num_classes=num_classes,
            input_size=options.parse_input_size(input_size),
            trust_code=trust_code,
            seed=chosen.decomposition.seed,
        )
        if opened.weights == "random":
            out.warn(f"{source} has random weights; give --pretrained or --checkpoint FILE for trained ones")
        calibration = None
        if calibration_data is not None:
            images, shuffling = open_images(calibration_data, opened.preprocessing), chosen.decomposition.seed
            calibration = calibration_batches(images, opened.preprocessing, seed=shuffling, workers=workers)
        model, report = run(
            opened.model,
            opened.example_inputs,
            chosen,
            calibration=calibration,
            forward_fn=opened.forward_fn,
            on_step=lambda step: status.update(Text(_STEPS.get(step, step))),
        )
        status.update(Text(f"writing {output}"))
        plain = {"recipe": chosen.to_dict(), "report": report.to_dict()}
        save_model(output, model, opened, extra={"weights": opened.weights}, **plain)
        write_recipe(output / RECIPE, chosen)
    out.show(layers_table(report), skipped_table(report), totals_table(report))
    out.show(f"written to {output} in {report.seconds:.1f} s; the recipe is {output / RECIPE}")
    out.result({"artifact": str(output), "source": opened.spec, "weights": opened.weights, **plain})


def _given(**settings: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in settings.items() if value not in (None, {}, [])}


def _parsed(text: str | None, parse: Callable[[str], Any]) -> Any:
    return None if text is None else parse(text)


def _table(option: str, texts: Iterable[str] | None, parse: Any) -> Mapping[str, Any]:
    pairs = [options.split_pair(option, text) for text in texts or ()]
    return {pattern: parse(value) for pattern, value in pairs}
