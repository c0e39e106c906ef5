"""``norton export-config``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_file, new_config, read_path
from norton_plugin.errors import MissingExtraError


def export_config(
    out: Output,
    config: Annotated[
        Path,
        typer.Argument(
            parser=read_path, callback=existing_file, metavar="CONFIG", help="Config of the dense model, as trained."
        ),
    ],
    checkpoint: Annotated[
        Path,
        typer.Argument(
            parser=read_path, callback=existing_file, metavar="CHECKPOINT", help="Checkpoint of a run with NortonHook."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=read_path,
            callback=new_config,
            metavar="FILE",
            help="Config to write; must not be there yet.",
        ),
    ] = Path("norton_config.py"),
) -> None:
    """Write a config that builds a compressed detector without the hook.

    The stock test.py, init_detector, DetInferencer and get_flops.py take it together with the checkpoint.

    Example: norton export-config retinanet_r50_fpn_1x_coco.py work_dirs/small/epoch_12.pth -o small.py
    """
    try:
        from norton_plugin.mm import export_config_of_checkpoint
    except ImportError as error:
        raise MissingExtraError("export-config needs mmengine: pip install 'norton-plugin[mmdet]'") from error

    entry = export_config_of_checkpoint(config, checkpoint, output)
    layers = len(entry["structure"]["modules"])
    out.show(f"{output}: builds the compressed model ({layers} changed modules) without NortonHook")
    out.result({"config": str(output), "modules": layers, "structure_hash": entry["structure_hash"]})
