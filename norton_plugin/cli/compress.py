"""``norton compress``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from norton_plugin.cli import options
from norton_plugin.cli import recipe_options as what
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_folder, read_path
from norton_plugin.cli.recipes import RECIPE, merge, read_recipe, write_recipe
from norton_plugin.errors import RecipeError
from norton_plugin.recipe import Recipe

if TYPE_CHECKING:
    from norton_plugin.pipeline import CompressionReport

_DATA = "Data"


def compress(
    out: Output,
    source: options.SourceArgument,
    output: options.OutputDirectory,
    recipe: what.RecipeFile = None,
    rank: what.Rank = None,
    rank_for: what.RankFor = None,
    level: what.Level = None,
    components: what.Components = None,
    share: what.Share = None,
    budget: what.Budget = None,
    latency_table: what.LatencyTable = None,
    reuse: what.Reuse = None,
    prune: what.Prune = False,
    clusters: what.Clusters = None,
    layer: what.LayerSettings = None,
    linear: what.Linear = False,
    target_nmse: what.TargetNMSE = None,
    keep: what.Keep = None,
    keep_for: what.KeepFor = None,
    round_to: what.RoundTo = None,
    criterion: what.Criterion = None,
    include: what.Include = None,
    exclude: what.Exclude = None,
    no_verify: what.NoVerify = False,
    calibration_data: Annotated[
        Path | None,
        typer.Option(
            "--calibration-data",
            "--data",
            parser=read_path,
            callback=existing_folder,
            metavar="DIR",
            help="Folder of images, in sub-folders or not, to re-estimate BatchNorm statistics on, to --calibrate "
            "and to --distill with; no labels are used.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    calibrate: what.Calibrate = False,
    distill: what.Distill = None,
    images: what.Images = None,
    memory: what.Memory = None,
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

    Example: norton compress timm:resnet18 --pretrained --budget macs=0.5 -o resnet18-half

    Example: norton compress timm:resnet18 --pretrained --budget latency=0.5 -o resnet18-twice-as-fast

    Example: norton compress timm:resnet18 --budget macs=0.2 --prune --data images --calibrate -o resnet18-fifth

    Example: norton compress timm:resnet18 --pretrained --level layer --share 0.3 -o resnet18-shared

    Example: norton compress timm:resnet18 --keep 0.7 --criterion output --data images --calibrate -o pruned

    Example: norton compress timm:resnet18 --pretrained --share 0.3 --data images --calibrate -o resnet18-fitted

    Example: norton compress timm:resnet18 --pretrained --budget macs=0.3 --data images --calibrate --distill 2 -o small
    """
    from norton_plugin.cli.images import calibration_batches
    from norton_plugin.cli.models import check_directory, check_one_image, open_model, save_model
    from norton_plugin.cli.steps import shown_steps
    from norton_plugin.insight import note_on_forms
    from norton_plugin.pipeline import compress as run

    budgets = what.budget_changes(
        budget, prune=prune, table=latency_table, reuse=reuse or _measured_before(budget, output)
    )
    if budgets and recipe is None:
        level = level or "auto"
        criterion = criterion or ("output" if prune else None)
    changes = {
        "scope": what.scope_changes(include=include, exclude=exclude),
        "decomposition": what.decomposition_changes(
            rank=rank,
            rank_for=rank_for,
            level=level,
            components=components,
            share=share,
            clusters=clusters,
            layer=layer,
            linear=linear,
            target_nmse=target_nmse,
            seed=seed,
        ),
        "budget": budgets,
        "pruning": what.pruning_changes(
            keep=keep, keep_for=keep_for, round_to=round_to, criterion=criterion, seed=seed
        ),
        "calibration": what.calibration_changes(
            calibrate=calibrate, images=images, seed=seed, memory=memory, data=calibration_data
        ),
        "distillation": what.distillation_changes(distill=distill, seed=seed),
    }
    chosen = merge(read_recipe(recipe) if recipe else Recipe(), changes, verify=False if no_verify else None)
    if not (chosen.decomposes or chosen.pruning.active):
        raise RecipeError(
            "there is nothing to do: give --budget, --rank, --share, --components, --keep below 1, or a --recipe that "
            "sets one"
        )
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
            check_one_image(opened)
            calibration = calibration_batches(
                out,
                calibration_data,
                opened.preprocessing,
                images=chosen.calibration.images,
                seed=chosen.decomposition.seed,
                fewest=8 if chosen.calibration.fit else 1,  # one of eight is held back
                workers=workers,
            )
        with shown_steps(out, status.update) as steps:
            result = run(
                opened.model,
                opened.example_inputs,
                chosen,
                calibration=calibration,
                forward_fn=opened.forward_fn,
                on_step=steps,
                on_detail=steps.detail,
            )
        model, report = result
        forms = note_on_forms(model, opened.example_inputs, report, forward_fn=opened.forward_fn)
        status.update(Text(f"writing {output}"))
        plain = {"recipe": result.recipe.to_dict(), "report": report.to_dict()}
        save_model(output, model, opened, extra={"weights": opened.weights}, **plain)
        result.save_measured(output)
        write_recipe(output / RECIPE, result.recipe)
    _show(out, report, forms)
    out.show(f"written to {output} in {report.seconds:.1f} s; the recipe is {output / RECIPE}")
    out.result({"artifact": str(output), "source": opened.spec, "weights": opened.weights, **plain})


def _show(out: Output, report: CompressionReport, forms: str | None) -> None:
    """Show what was done, layer by layer and in all, and what to know of it."""
    from norton_plugin.insight import calibration_table, layers_table, skipped_table, totals_table
    from norton_plugin.pipeline import budget_in_words, distillation_in_words, note_on_distances

    if report.budget is not None:
        out.show(budget_in_words(report.budget))
        if report.budget.sensitivities:
            out.show(report.budget.sensitivities)
    if report.calibration is not None:
        out.show(calibration_table(report.calibration))
    if report.distillation is not None:
        out.show(distillation_in_words(report.distillation))
    left = [skipped_table(report)] if report.skipped else []
    out.show(layers_table(report), *left, totals_table(report))
    for remark in (forms, note_on_distances(report)):
        if remark:
            out.show(remark)
    for warning in report.warnings:
        out.warn(warning)


def _measured_before(budget: list[str] | None, output: Path) -> Path | None:
    """Return the artefact that is to be replaced, where it holds what a budget can use."""
    from norton_plugin.budget import SENSITIVITIES

    return output if budget and (output / SENSITIVITIES).is_file() else None
