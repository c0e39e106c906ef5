"""``norton report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_folder, output_file, read_path


def report(
    out: Output,
    directory: Annotated[
        Path,
        typer.Argument(
            parser=read_path,
            callback=existing_folder,
            metavar="DIR",
            help="Artefact that norton compress, finetune or deploy wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=read_path,
            callback=output_file,
            metavar="FILE",
            help="Page to write; a previous one is replaced.",
            show_default="report.html in DIR",
        ),
    ] = None,
) -> None:
    """Show a compression as one HTML page: sizes, layers, error, similar filters, and what was left and why.

    The page loads nothing and runs no script. It also shows measurements that lie in DIR (evaluation.json, what norton
    evaluate --json prints; deploy.json, forms.json, bench.json), and pictures.

    Example: norton report resnet18-small -o resnet18-small.html
    """
    from norton_plugin.insight.page import write_page

    page = write_page(directory, output)
    out.show(f"{page} shows the compression; open it in a browser")
    out.result({"artifact": str(directory), "page": str(page)})
