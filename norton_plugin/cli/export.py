"""``norton export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from norton_plugin.cli import limits, options
from norton_plugin.cli.output import Output
from norton_plugin.cli.paths import existing_folder, exported_file, read_path
from norton_plugin.errors import RecipeError

if TYPE_CHECKING:
    from norton_plugin.export import ExportReport, Int8Report
    from norton_plugin.export.runtimes import Runtime

_INT8 = "Int8"
_MORE = 1.2  # times the bytes of the model: the file holds rebuilt weights
_FEW = 95.0  # percent of images; below, classes change that nobody expects to


def export(
    out: Output,
    source: options.SourceArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            parser=read_path,
            callback=exported_file,
            metavar="FILE",
            help="FILE.onnx, or FILE.pt2 for a program of torch.export; a file that is there is replaced.",
        ),
    ],
    opset: Annotated[int, typer.Option("--opset", metavar="N", help="Version of ONNX's operators.")] = 18,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            max=limits.BATCH_SIZE,
            metavar="N",
            help="Fix the images per run; left open by default.",
        ),
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Leave height and width open, where the model allows it.")
    ] = False,
    check: Annotated[
        list[str] | None,
        typer.Option(
            "--check",
            metavar="NAME",
            help="Where an ONNX file has to run, onnxruntime or openvino; repeatable, both by default.",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Write a quantised file beside it, calibrated on --data.", rich_help_panel=_INT8),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            parser=read_path,
            callback=existing_folder,
            metavar="DIR",
            help="Images; with one sub-folder per class, accuracy is measured.",
            rich_help_panel=_INT8,
        ),
    ] = None,
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            metavar="NAME",
            help="Whose quantiser: onnxruntime (FILE.int8.onnx) or openvino (NNCF; FILE.int8.xml and .bin).",
            rich_help_panel=_INT8,
        ),
    ] = "onnxruntime",
    calibration_images: Annotated[
        int,
        typer.Option(
            "--calibration-images",
            min=1,
            max=limits.BATCH_SIZE,
            metavar="N",
            help="Images that fix the ranges.",
            rich_help_panel=_INT8,
        ),
    ] = 256,
    images: Annotated[
        int,
        typer.Option(
            "--images",
            min=1,
            max=limits.COMPARED,
            metavar="N",
            help="Other images on which int8 and fp32 are compared.",
            rich_help_panel=_INT8,
        ),
    ] = 1000,
    seed: options.Seed = 0,
    pretrained: options.Pretrained = False,
    checkpoint: options.Checkpoint = None,
    num_classes: options.NumClasses = None,
    input_size: options.InputSize = None,
    trust_code: options.TrustCode = False,
) -> None:
    """Write a model as ONNX or as a torch.export program, checked against PyTorch before the file is there.

    ONNX files are run in onnxruntime and in OpenVINO (--check). Detectors of mmdet end at the tensors of
    their head, those of two stages at the RPN; detectors of torchvision are written whole, for one image.

    Example: norton export resnet18-small -o small.onnx

    Example: norton export resnet18-small -o small.onnx --int8 --data imagenet/val
    """
    from norton_plugin.cli.images import int8_settings
    from norton_plugin.cli.models import open_model
    from norton_plugin.export import RUNTIMES, check_quantisable
    from norton_plugin.export import export as write
    from norton_plugin.zoo import exported_part

    if int8 != (data is not None):
        raise RecipeError("--int8 and --data belong together: a quantiser calibrates on images; give both or none")
    with out.status(f"building {source}") as status:
        opened = open_model(
            source,
            pretrained=pretrained,
            checkpoint=checkpoint,
            num_classes=num_classes,
            input_size=options.parse_input_size(input_size),
            trust_code=trust_code,
            seed=seed,
        )
        if opened.weights == "random":
            out.warn(f"{source} has random weights; give --pretrained or --checkpoint FILE for trained ones")
        forward_fn, part = exported_part(opened.spec, opened.model)
        if data is not None:
            check_quantisable(forward_fn)
            status.update(f"reading images of {data}")
        sizes = (calibration_images, images)
        settings = int8_settings(out, data, opened.preprocessing, runtime, sizes, seed=seed)
        status.update(f"writing and checking {output}")
        report = write(
            opened.model,
            opened.example_inputs,
            output,
            opset=opset,
            batch=batch,
            dynamic_size=dynamic_size,
            int8=settings,
            runtimes=cast("list[Runtime]", check or list(RUNTIMES)),
            forward_fn=forward_fn,
        )
    _show(out, report, part, own_bytes=sum(tensor.nbytes for tensor in opened.model.state_dict().values()))
    out.result({"source": opened.spec, "part": part, **report.to_dict()})


def _show(out: Output, report: ExportReport, part: str, *, own_bytes: int) -> None:
    from norton_plugin.export.checks import ALIKE, ROUNDING

    kind = "a program of torch.export" if report.opset is None else f"ONNX, opset {report.opset}"
    if report.opset is None and report.checks[0].alike is not None:
        kind += ", for which torchvision has to be imported"
    free = f"; open: {', '.join(report.open_axes)}" if report.open_axes else ""
    out.show(f"{report.path}: {part}, {_size(report.file_bytes)} ({kind}{free})")
    if report.weight_bytes > _MORE * own_bytes:
        out.show(
            f"its weights take {_size(report.weight_bytes)}, those of the compressed model {_size(own_bytes)}: blocks "
            "that should be no faster in factors are written as plain convolutions; in Python export(forms=...) keeps "
            "factors"
        )
    for check in report.checks:
        shapes = " and ".join("x".join(map(str, shape)) for shape in check.shapes)
        of_all = f" in {check.alike[0]} of {check.alike[1]} objects found" if check.alike else ""
        told = f"agrees with PyTorch to {check.difference:.1e} of the largest output{of_all} on {shapes}"
        out.show(f"{check.runtime} {told}")
    again = min((check.again for check in report.checks if check.again is not None), default=1.0)
    if again < ALIKE:
        out.warn(
            f"the model itself finds {again:.0%} of its objects again in an image changed by {ROUNDING:.0e} of its "
            "values, so that the check asks for few; are the weights trained?"
        )
    if report.int8 is not None:
        _show_int8(out, report.int8)


def _show_int8(out: Output, report: Int8Report) -> None:
    accuracy = ""
    if report.int8_top1 is not None:
        accuracy = f", top-1 {report.int8_top1:.2f} % (fp32 {report.fp32_top1:.2f} %)"
    same = "" if report.agreement is None else f", the same top-1 as fp32 on {report.agreement:.2f} %"
    out.show(
        f"{report.path}: {_size(report.int8_bytes)} (fp32 {_size(report.fp32_bytes)}), calibrated on "
        f"{report.calibration_images} images; on {report.images} images outputs differ by "
        f"{100 * report.difference:.1f} %{same}{accuracy}"
    )
    out.show(
        f"{report.runtime}, one image, one thread: fp32 {report.fp32_ms:.2f} ms, int8 {report.int8_ms:.2f} ms, "
        f"{report.speedup:.2f} times as fast (instructions of this processor for int8: {report.instructions})"
    )
    if report.agreement is not None and report.agreement < _FEW:
        out.warn(
            f"int8 answers otherwise than fp32 on {100 - report.agreement:.1f} % of the images; try --runtime openvino"
        )


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"
