"""The job: a model becomes a file, and the file is checked before it takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.deploy.choices import Forms
from norton_plugin.errors import ExportError
from norton_plugin.export.checks import Case, Check, check_initializers, check_outputs
from norton_plugin.export.comparison import Int8Report, compare
from norton_plugin.export.equalise import equalise_
from norton_plugin.export.int8 import Int8, int8_path, quantize
from norton_plugin.export.network import ExportedNetwork, input_names
from norton_plugin.export.onnx_file import DEFAULT_OPSET, check_opset, write_onnx
from norton_plugin.export.packages import check_export_packages, check_nncf
from norton_plugin.export.placing import placed_whole
from norton_plugin.export.program import AXES, open_axes, resized, trace_program
from norton_plugin.export.ready import inference_copy
from norton_plugin.export.report import ExportReport
from norton_plugin.export.runtimes import RUNTIMES, Runner, Runtime, open_file, open_program
from norton_plugin.modules.running import ForwardFunction, traceable

SUFFIXES = (".onnx", ".pt2")
_RANGES = 64  # images whose ranges balance the components; the quantiser sees all of them


def export(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    opset: int = DEFAULT_OPSET,
    batch: int | None = None,
    dynamic_size: bool = False,
    int8: Int8 | None = None,
    forms: Forms = "static",
    runtimes: Sequence[Runtime] = RUNTIMES,
    forward_fn: ForwardFunction | None = None,
) -> ExportReport:
    """Write a model as ONNX or as a ``torch.export`` program, checked against the model before the file is there.

    Blocks become ordinary layers first. An ONNX file is run in onnxruntime and in OpenVINO, a ``.pt2`` file in PyTorch,
    on inputs that the exporter did not see; where one differs from the model, nothing is written.

    Args:
        model: Compressed or dense; left as it is. It is exported in evaluation mode, on the CPU.
        example_inputs: A tensor or several positional ones, batch axis first.
        path: ``FILE.onnx`` or ``FILE.pt2``; a file that was there is replaced in one step.
        opset: Of ONNX.
        batch: Images that every run takes; None leaves it open.
        dynamic_size: Height and width stay open too.
        int8: Write a quantised file beside it; ONNX only.
        forms: Of the blocks, as of ``deploy.prepare``: the fast ones by size, ``"measured"``, or a mapping of names to
            forms. Where a small map makes the dense form the fastest, the file holds the rebuilt weight;
            ``"depthwise"`` is smaller.
        runtimes: Those in which an ONNX file has to run; one that lacks an operator of the model may be left out.
        forward_fn: ``(model, inputs) -> output`` where a plain call is not what is to be exported.

    Raises:
        ExportError: The model is refused, a check failed, or the file cannot be written; what was there is untouched.
        MissingExtraError: A package is absent.
    """
    begin, path = time.perf_counter(), Path(path)
    _check_arguments(path, batch=batch, opset=opset, int8=int8, runtimes=runtimes)
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    inputs = tuple(tensor.detach().cpu() for tensor in given)
    axes = open_axes(batch=batch, dynamic_size=dynamic_size)
    if int8 is not None:
        _check_images(int8, inputs)
    if dynamic_size and any(tensor.dim() != 4 for tensor in inputs):
        raise ExportError("height and width can stay open for images (B, C, H, W) only; leave out dynamic_size")
    with traceable(model):
        reference = ExportedNetwork(model, forward_fn)
        cases = _cases(reference, inputs, batch=batch, dynamic_size=dynamic_size)
        network = ExportedNetwork(inference_copy(model, inputs, forms=forms, forward_fn=forward_fn), forward_fn).eval()
        names = (input_names(inputs), network.output_names(inputs))
        if int8 is not None:
            equalise_(network, list(int8.calibration[:_RANGES]))
        # A batch of 1 would be taken for a constant; height and width of one size for one axis.
        program = trace_program(
            network,
            resized(inputs, batch=batch or 2, larger=(0, 1) if dynamic_size else (0, 0), seed=0),
            axes=axes,
        )
        with placed_whole(path.absolute().parent) as folder:
            written = folder / path.name
            report = ExportReport(
                path=path,
                format=path.suffix[1:],
                opset=opset if path.suffix == ".onnx" else None,
                inputs=tuple(names[0]),
                outputs=tuple(names[1]),
                open_axes=tuple(AXES[axis] for axis in axes),
                **_write(program, network, written, cases, opset=opset, names=names, axes=axes, runtimes=runtimes),
                seconds=0.0,
            )
            quantized = _quantized(written, int8) if int8 is not None else None
    if quantized is not None:
        quantized = replace(quantized, path=path.with_name(quantized.path.name))
    return replace(report, int8=quantized, seconds=time.perf_counter() - begin)


def _check_arguments(
    path: Path, *, batch: int | None, opset: int, int8: Int8 | None, runtimes: Sequence[Runtime]
) -> None:
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{str(path)!r} should end in {' or '.join(SUFFIXES)}; the suffix says what is written")
    if path.is_dir():
        raise ExportError(f"{str(path)!r} is a folder; give the name of a file")
    if batch is not None and batch < 1:
        raise ExportError(f"batch is {batch}, expected at least 1, or None to leave it open")
    if not runtimes or not set(runtimes) <= set(RUNTIMES):
        raise ExportError(f"runtimes is {list(runtimes)}; expected one or more of {', '.join(RUNTIMES)} (--check NAME)")
    if path.suffix == ".onnx":
        check_export_packages()
        check_opset(opset)
    if int8 is None:
        return
    if path.suffix != ".onnx":
        raise ExportError(f"int8 is made from an ONNX file, and {str(path)!r} is none; give a name that ends in .onnx")
    if batch not in (None, 1):
        raise ExportError(f"batch is {batch}, and calibration runs one image at a time; leave it open, or give 1")
    if int8.runtime == "openvino":
        check_nncf()


def _check_images(int8: Int8, inputs: tuple[Tensor, ...]) -> None:
    if len(inputs) != 1:
        raise ExportError(f"int8 is calibrated on images, one input at a time; the model takes {len(inputs)} inputs")
    wanted = (1, *inputs[0].shape[1:])
    for images, purpose in ((int8.calibration, "calibrate on"), (int8.compared, "compare on")):
        found = tuple(images[0].shape)
        if found != wanted:
            raise ExportError(f"an image to {purpose} has shape {found}; expected that of the example, {wanted}")


def _cases(
    reference: ExportedNetwork, inputs: tuple[Tensor, ...], *, batch: int | None, dynamic_size: bool
) -> list[Case]:
    """Run the model on inputs of two batches, and of a larger size where that stays open."""
    batches = (1, 3) if batch is None else (batch, batch)
    larger = [(0, 0), (1, 2) if dynamic_size else (0, 0)]
    found = []
    for seed, (count, more) in enumerate(zip(batches, larger, strict=True), start=1):
        example = resized(inputs, batch=count, larger=more, seed=seed)
        try:
            found.append(Case(example, reference(*example)))
        except Exception as error:
            shape = tuple(example[0].shape)
            raise ExportError(
                f"the model does not run on an input of {shape} ({type(error).__name__}: {error}), which the file "
                f"has to take; give {'no dynamic size' if any(more) else 'the batch it is made for (--batch 1)'}"
            ) from error
    return found


def _write(
    program: Any,
    network: ExportedNetwork,
    path: Path,
    cases: list[Case],
    *,
    opset: int,
    names: tuple[list[str], list[str]],
    axes: tuple[int, ...],
    runtimes: Sequence[Runtime],
) -> dict[str, Any]:
    """Write the file, run all checks, and return what the report says of them."""
    constants: int | None = None
    if path.suffix == ".onnx":
        write_onnx(program, path, opset=opset, names=names, axes=axes)
        constants, weights = check_initializers(path, network)
        openers: dict[str, Callable[[Path], Runner]] = {name: partial(open_file, runtime=name) for name in runtimes}
    else:
        torch.export.save(program, path)
        weights = sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])
        openers = {"torch.export": open_program}
    checks: tuple[Check, ...] = tuple(check_outputs(name, opened, path, cases) for name, opened in openers.items())
    return {
        "checks": checks,
        "constant_bytes": constants,
        "weight_bytes": weights,
        "file_bytes": path.stat().st_size,
    }


def _quantized(path: Path, settings: Int8) -> Int8Report:
    target = int8_path(path, settings.runtime)
    quantize(path, target, settings)
    return compare(path, target, settings)
