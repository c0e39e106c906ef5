"""``norton deploy``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from norton_plugin.cli import options
from norton_plugin.cli.advised import advise
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_file, read_path
from norton_plugin.cli.recipes import carry_recipe
from norton_plugin.errors import MissingExtraError, RecipeError, SourceError

if TYPE_CHECKING:
    import torch

    from norton_plugin.cli.models import Opened
    from norton_plugin.deploy import DeploymentTable, PreparedModel
    from norton_plugin.deploy.comparison import Comparison

_FORMS = "Forms"


def deploy(
    out: Output,
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|CONFIG",
            help="An artefact, or the config of a detector, dense or exported; any other source as well.",
            show_default=False,
        ),
    ],
    output: options.OutputDirectory,
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            parser=read_path, callback=existing_file, metavar="[CHECKPOINT]", help="Of the CONFIG.", show_default=False
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option("--static", help="Choose forms by their sizes; measure nothing.", rich_help_panel=_FORMS),
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            parser=read_path,
            callback=existing_file,
            metavar="FILE",
            help="Take over a forms.json that was measured elsewhere; measure nothing.",
            rich_help_panel=_FORMS,
        ),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Try torch.compile, too.", rich_help_panel=_FORMS)] = False,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, max=1000, metavar="N", help="Timed calls.", rich_help_panel=_FORMS)
    ] = 7,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="Where to measure: cpu, cuda or cuda:N.")
    ] = "cpu",
    batch_size: options.BatchSize = 1,
    input_size: options.InputSize = None,
    trust_code: options.TrustCode = False,
) -> None:
    """Make a compressed model as fast as it can be where this command runs, and write it.

    Blocks become plain convolutions, each in the form that is the fastest here; norms are folded; the faster memory
    format is chosen. The result is an artefact with a table (forms.json): norton_plugin.deploy.load(DIR) gives the fast
    model, training goes on from it as from any artefact, whose recipe is kept.

    Example: norton deploy small -o small-fast --threads 1

    Example: norton deploy retinanet.py work_dirs/small/epoch_12.pth -o small-fast --input-size 800
    """
    from norton_plugin.cli.models import check_directory
    from norton_plugin.deploy import prepare, read_table
    from norton_plugin.deploy.comparison import compare_with_dense
    from norton_plugin.deploy.compiling import NOT_CALLED
    from norton_plugin.modules.running import repeated

    if static and (table is not None or compile):
        raise RecipeError("--static measures nothing: leave out --table and --compile, or --static")
    target = _device(device)
    given = read_table(table) if table is not None else None
    check_directory(output)
    with out.status(f"building {source}") as status:
        opened = _open(source, checkpoint, options.parse_input_size(input_size), trust_code=trust_code)
        if compile and opened.forward_fn is not None:
            raise RecipeError(f"--compile: {NOT_CALLED}")
        opened.model.to(target)
        example = tuple(x.to(target) for x in repeated(opened.example_inputs, batch_size))
        status.update("choosing forms" if static or given else "measuring forms")
        prepared = prepare(
            opened.model,
            example,
            forms="static" if static else given or "measured",
            compile=compile,
            rounds=rounds,
            forward_fn=opened.forward_fn,
        )
        status.update("comparing with the dense model")
        found = compare_with_dense(
            opened.model,
            prepared,
            example,
            opened.spec,
            rounds=0 if static else rounds,
            forward_fn=opened.forward_fn,
        )
        status.update(f"writing {output}")
        opened.model.to("cpu")
        recipe = _save(output, opened, prepared.deployment)
    _tell(out, output, prepared, found, recipe)
    advise(out, opened.manifest, found.speedup, found.macs_ratio)


def _tell(out: Output, output: Path, prepared: PreparedModel, found: Comparison, recipe: Path | None) -> None:
    """Print what was done."""
    from norton_plugin.insight.deployment import blocks_table, deployment_lines

    if prepared.table:
        out.show(blocks_table(prepared, found))
    else:
        out.show("the model has no blocks whose form could be chosen: it was not decomposed")
    out.show(*deployment_lines(prepared, found))
    out.show(f"written to {output}; norton_plugin.deploy.load({str(output)!r}) gives the fast model")
    if recipe is not None:
        out.show(f"the recipe of the compression is {recipe}")
    out.result(
        {
            "artifact": str(output),
            "table": prepared.deployment.to_dict(),
            "folded": list(prepared.folded),
            "left": [{"name": name, "reason": reason} for name, reason in prepared.left],
            **found.to_dict(),
        }
    )


def _device(text: str) -> torch.device:
    """Read ``--device``.

    Raises:
        RecipeError: It is none, or not there.
    """
    import torch

    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise RecipeError(f"--device is {text!r}; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"--device is {text!r}; expected cpu, cuda or cuda:N")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise RecipeError(f"--device is {text!r}, and torch finds {found} CUDA devices here; take cpu")
    return device


def _save(output: Path, opened: Opened, table: DeploymentTable) -> Path | None:
    """Write the artefact with its table, and beside it a copy of the table and the recipe, whose path is returned."""
    from norton_plugin.cli.models import save_model
    from norton_plugin.deploy.loading import KEY, TABLE

    manifest = opened.manifest
    recipe, report, extra = (None, None, {}) if manifest is None else (manifest.recipe, manifest.report, manifest.extra)
    extra = {**extra, "weights": opened.weights, KEY: table.to_dict()}
    save_model(output, opened.model, opened, recipe=recipe, report=report, extra=extra)
    table.write(output / TABLE)
    return carry_recipe(output, manifest)


def _open(source: str, checkpoint: Path | None, input_size: Any, *, trust_code: bool) -> Opened:
    from norton_plugin.cli.models import Opened, open_model

    is_config = source.endswith(".py") and Path(source).is_file()
    if checkpoint is None:
        if is_config:
            raise SourceError(f"{source} is a config; give the checkpoint with its weights after it")
        opened = open_model(source, input_size=None if Path(source).is_dir() else input_size, trust_code=trust_code)
        if input_size is None or not Path(source).is_dir():
            return opened
        return _resized(opened, input_size)
    if not is_config:
        raise SourceError(f"a checkpoint was given, and {source!r} is no config file; expected CONFIG CHECKPOINT")
    try:
        from norton_plugin.mm.configs.opening import open_checkpoint
    except ImportError as error:
        raise MissingExtraError("a config needs mmengine: pip install 'norton-plugin[mmdet]'") from error
    found = open_checkpoint(source, checkpoint, input_size=input_size)
    return Opened(
        found.model,
        found.example_inputs,
        found.preprocessing,
        found.spec,
        source,
        str(checkpoint),
        forward_fn=found.forward_fn,
    )


def _resized(opened: Opened, input_size: int | tuple[int, ...]) -> Opened:
    """Return an opened artefact with an example of another size: forms are chosen for it."""
    import torch

    from norton_plugin.zoo.preprocessing import resolve_input_size

    size = resolve_input_size(input_size, opened.preprocessing.input_size)
    generator = torch.Generator().manual_seed(0)
    example = tuple(torch.randn((1, *size), generator=generator) for _ in opened.example_inputs)
    return replace(opened, example_inputs=example, preprocessing=replace(opened.preprocessing, input_size=tuple(size)))
