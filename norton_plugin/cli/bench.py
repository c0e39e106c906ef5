"""``norton bench``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from norton_plugin.cli import limits, options
from norton_plugin.cli.advised import advise
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_folder, output_file, read_path
from norton_plugin.errors import ArtifactError, RecipeError

if TYPE_CHECKING:
    from norton_plugin.bench import BenchReport
    from norton_plugin.export import Runtime

_WHAT, _INT8 = "What is timed", "Int8"
_CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
_SAMPLE = (256, 64)  # images to calibrate and to compare on
_ALL = "pytorch,onnxruntime,openvino"


def bench(
    out: Output,
    directory: Annotated[
        str,
        typer.Argument(metavar="DIR", help="An artefact, of norton compress, finetune or deploy.", show_default=False),
    ],
    batches: Annotated[str, typer.Option("--batch", metavar="N,N", help="Batch sizes.", rich_help_panel=_WHAT)] = "1",
    thread_counts: Annotated[
        str | None,
        typer.Option(
            "--thread-counts",
            metavar="N,N",
            help="Numbers of threads, one after the other; --threads alone by default.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    runtimes: Annotated[
        str,
        typer.Option(
            "--runtimes",
            metavar="NAMES",
            help=f"Of {_ALL}; those after the first need the extra 'export'.",
            rich_help_panel=_WHAT,
        ),
    ] = "pytorch",
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Time both compiled by torch.compile too (minutes).", rich_help_panel=_WHAT),
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help="Also time every changed layer.", rich_help_panel=_WHAT)
    ] = True,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10000, metavar="N", help="Timed calls of each.")] = 15,
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=0, max=86400, help="No further round begins after so long, at each setting."),
    ] = 30.0,
    clock: Annotated[
        str,
        typer.Option(
            "--clock",
            metavar="NAME",
            help="wall, or processor: without the time that other programs took; for one thread.",
        ),
    ] = "wall",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=read_path,
            callback=output_file,
            metavar="FILE",
            help="Write the figures as JSON.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            parser=read_path,
            callback=output_file,
            metavar="FILE",
            help="Draw the figures as PNG or SVG (extra 'insight').",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--int8-data",
            parser=read_path,
            callback=existing_folder,
            metavar="DIR",
            help="Images to calibrate on; int8 is timed too.",
            rich_help_panel=_INT8,
        ),
    ] = None,
    trust_code: options.TrustCode = False,
) -> None:
    """Time a compressed model beside its dense original: as loaded, as delivered, exported, and layer by layer.

    All are timed in turn in one run; the dense model gets the same runtime and folded norms, so that what is left is
    what compression brings. Efficiency is speed-up over the ratio of MACs: 1 where every MAC saved is time saved.

    What 'norton deploy' wrote runs in the forms that were measured there, any other artefact in forms chosen by size.

    Example: norton bench resnet18-small --runtimes pytorch,onnxruntime --batch 1,8
    """
    from norton_plugin.bench import bench as measure
    from norton_plugin.cli.images import int8_settings
    from norton_plugin.cli.models import open_model
    from norton_plugin.deploy.loading import stored_table
    from norton_plugin.zoo import exported_part, inference_of, rebuild

    most = limits.PER_CORE * (os.cpu_count() or 1)
    counts = _numbers("--thread-counts", thread_counts or str(out.threads or 1), most=most)
    sizes, chosen = _numbers("--batch", batches, most=limits.BATCH_SIZE), _runtimes(runtimes)
    seconds_of = _clock(clock, counts)
    with out.status(f"building {directory}") as status:
        opened = open_model(directory, trust_code=trust_code)
        if opened.manifest is None:
            raise ArtifactError(f"{directory} is no artefact; compress it first: norton compress {directory} -o DIR")
        table = stored_table(opened.manifest, directory)
        boxes, (part, held) = inference_of(opened.spec, opened.model), exported_part(opened.spec, opened.model)
        report = measure(
            rebuild(opened.spec, trust_code=trust_code),
            opened.model,
            opened.example_inputs,
            batches=sizes,
            threads=counts,
            runtimes=chosen,
            rounds=rounds,
            seconds=seconds,
            layers=layers,
            int8=int8_settings(out, data, opened.preprocessing, "onnxruntime", _SAMPLE),
            forms=table.forms if table else "static",
            compile=compile or (table is not None and table.compiled),
            forward_fn=opened.forward_fn,
            timed_fn=boxes,
            export_forward=part,
            clock=seconds_of,
            on_step=status.update,
        )
    found = _told(out, report, clock, opened.spec, deployed=table is not None, detector=held if boxes else "")
    advise(out, opened.manifest, max(each.speed_up_in_pytorch for each in report.settings), report.macs_ratio)
    _write(found, report, output, plot)
    out.show(*(f"written: {path}" for path in (output, plot) if path is not None))
    out.result(found)


def _write(found: Mapping[str, Any], report: BenchReport, output: Path | None, plot: Path | None) -> None:
    """Write the figures as JSON, and draw them, where that is asked for."""
    from norton_plugin.artifact import write_whole
    from norton_plugin.bench import plot_speed

    if output is not None:
        write_whole(output, (json.dumps(found, indent=1) + "\n").encode())
    if plot is not None:
        plot_speed(plot, report)


def _clock(name: str, thread_counts: list[int]) -> Callable[[], float]:
    if name not in _CLOCKS:
        raise RecipeError(f"--clock is {name!r}; expected one of {', '.join(_CLOCKS)}")
    if name == "processor" and max(thread_counts) > 1:
        raise RecipeError("--clock processor adds the time of all threads up; use it with one thread")
    return _CLOCKS[name]


def _numbers(option: str, text: str, *, most: int) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and 1 <= int(part) <= most for part in parts):
        raise RecipeError(f"{option} is {text!r}; expected numbers from 1 to {most} with commas between them")
    return list(dict.fromkeys(int(part) for part in parts))


def _runtimes(text: str) -> list[Runtime]:
    from norton_plugin.export import RUNTIMES

    names = [part.strip() for part in text.split(",")]
    if unknown := [name for name in names if name not in ("pytorch", *RUNTIMES)]:
        raise RecipeError(f"--runtimes names {', '.join(map(repr, unknown))}; expected some of {_ALL}")
    return [name for name in RUNTIMES if name in names]


def _told(
    out: Output, report: BenchReport, clock: str, spec: Mapping[str, Any], *, deployed: bool, detector: str
) -> dict[str, Any]:
    """Print the figures, and return them as JSON has them; of a detector, files hold what is named."""
    from norton_plugin.bench import changed_layers_table, times_table

    out.show(
        f"{report.device}; MACs {report.macs_dense / 1e6:,.1f} M to {report.macs / 1e6:,.1f} M "
        f"({report.macs_ratio:.2f} times fewer)"
    )
    how = "those that norton deploy chose" if deployed else "chosen by size ('norton deploy' measures them)"
    out.show(f"forms of blocks in PyTorch: {how}")
    if detector:
        ratio = report.file_macs_ratio
        fewer = "" if ratio is None else f", with {ratio:.2f} times fewer MACs"
        out.show(f"in PyTorch the detector runs up to its boxes; files of other runtimes hold {detector}{fewer}")
    for setting in report.settings:
        out.show(times_table(setting))
        best = max((t for t in setting.timings if t.efficiency is not None), key=lambda t: t.speed_up)
        in_all = "" if detector else f", {best.speed_up_in_all:.2f} times as the dense model in PyTorch"
        out.show(
            f"largest speed-up: {best.model} in {best.runtime}, {best.speed_up:.2f} times as fast as the dense model "
            f"there (efficiency {best.efficiency:.2f}){in_all}"
        )
        if setting.doubt is not None:
            out.warn(setting.doubt + ("" if clock == "processor" else ", or on one thread by --clock processor"))
    if report.layers:
        out.show(changed_layers_table(report))
    for name, reason in report.left:
        out.warn(f"{name} was not timed: {reason}")
    forms = "deployed" if deployed else "static"
    return {"source": spec, "clock": clock, "boxes": bool(detector), "forms": forms, **report.to_dict()}
