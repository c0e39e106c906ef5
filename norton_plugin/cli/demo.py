"""``norton demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from norton_plugin.cli import options
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import read_path, working_folder
from norton_plugin.modules.threads import torch_threads

if TYPE_CHECKING:
    from norton_plugin.demo import DemoResult
    from norton_plugin.insight import FittedTable


def demo(
    out: Output,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=read_path,
            callback=working_folder,
            metavar="DIR",
            help="Where artefacts, plot, numbers and the page go.",
        ),
    ] = Path("norton-demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Train for a few epochs only: shows that it runs, not what it reaches.")
    ] = False,
    seed: options.Seed = 0,
) -> None:
    """Train a small network on scikit-learn's digits, compress it to 50, 30 and 15 % of its MACs, and compare.

    Needs no download and takes a few minutes on two cores.

    Example: norton demo -o norton-demo
    """
    from norton_plugin.cli.models import check_directory
    from norton_plugin.demo import PAGE, RECIPES, run_demo

    for name in RECIPES:
        check_directory(output / name)
    start = time.perf_counter()
    # The network is so small that threads on cores which others use cost more than they give.
    with torch_threads(out.threads or 1), out.stepping("loading the digits") as on_step:
        result = run_demo(output, quick=quick, seed=seed, on_step=on_step, on_note=out.note)
    seconds = time.perf_counter() - start
    out.show(_table(result))
    out.show(
        f"{result.train_images} training and {result.test_images} test images; accuracy of compressed models: with "
        "BatchNorm statistics re-estimated, and after fine-tuning; speed-up over dense: medians of interleaved calls, "
        f"batch {result.latency_batch}"
    )
    out.show(f"{seconds:.0f} s in all; artefacts, demo.png and demo.json are in {output}")
    page = output / PAGE
    out.show(f"open {page} in a browser: it shows {result.compressed[-1].name} layer by layer, and this table")
    out.result({**result.to_dict(), "directory": str(output), "seconds": seconds, "page": str(page)})


def _table(result: DemoResult) -> FittedTable:
    from norton_plugin.insight import Column, FittedTable, change, percent, short

    columns = (
        Column("model"),
        Column("recipe"),
        Column("accuracy", number=True),
        Column("fine-\ntuned", number=True),
        Column("MACs", number=True, optional=2),
        Column("of dense", number=True),
        Column("parameters", number=True, optional=3),
        Column("change", number=True, optional=1),
        Column("speed-\nup", number=True),
    )
    table = FittedTable("Digits: dense and compressed", columns)
    dense = result.dense
    table.add_row(
        "dense", "-", f"{dense.accuracy:.2f} %", "-", short(dense.macs), "100.0 %", short(dense.parameters), "-", "1.00"
    )
    for each in result.compressed:
        table.add_row(
            each.name,
            each.recipe,
            f"{each.accuracy_before:.2f} %",
            f"{each.accuracy_after:.2f} %",
            short(each.macs),
            percent(each.macs / dense.macs),
            short(each.parameters),
            change(dense.parameters, each.parameters),
            f"{each.latency_ratio:.2f}",
        )
    return table
