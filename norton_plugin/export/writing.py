"""The job: a model becomes a file, and the file is checked before it takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_plugin.deploy.choices import Forms
from norton_plugin.errors import ExportError
from norton_plugin.export.checks import ROUNDING, TOLERANCE, Case, Check, check_alike, check_initializers, check_outputs
from norton_plugin.export.comparison import Int8Report, compare
from norton_plugin.export.equalise import equalise_
from norton_plugin.export.int8 import Int8, check_quantisable, int8_path, quantize
from norton_plugin.export.network import ExportedNetwork, input_names
from norton_plugin.export.onnx_file import DEFAULT_OPSET, check_opset, write_onnx
from norton_plugin.export.packages import check_export_packages, check_nncf
from norton_plugin.export.placing import placed_whole
from norton_plugin.export.program import AXES, open_axes, resized, trace_program
from norton_plugin.export.ready import inference_copy
from norton_plugin.export.report import ExportReport
from norton_plugin.export.rows import compare_rows
from norton_plugin.export.runtimes import RUNTIMES, Runner, Runtime, open_file, open_program
from norton_plugin.modules.running import ForwardFunction, fixed_batch, is_unordered, takes_one_size, traceable

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
    batch = fixed_batch(forward_fn) if batch is None else batch
    _check_arguments(path, batch=batch, opset=opset, int8=int8, runtimes=runtimes)
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    inputs = tuple(tensor.detach().cpu() for tensor in given)
    if int8 is not None:
        _check_images(int8, inputs)
        check_quantisable(forward_fn)
    if dynamic_size and takes_one_size(forward_fn):
        raise ExportError("a file of a whole detector takes images of one size; leave out dynamic_size")
    if dynamic_size and any(tensor.dim() != 4 for tensor in inputs):
        raise ExportError("height and width can stay open for images (B, C, H, W) only; leave out dynamic_size")
    settings = _Settings(opset, batch, dynamic_size, tuple(runtimes))
    with traceable(model):
        cases = _cases(model, inputs, forward_fn, settings)
        plain = inference_copy(model, inputs, forms=forms, forward_fn=forward_fn)
        if int8 is not None:
            equalise_(ExportedNetwork(plain, forward_fn), list(int8.calibration[:_RANGES]))
        with placed_whole(path.absolute().parent) as folder:
            written = folder / path.name
            more = _checked_by_more(model, plain, inputs, written, forward_fn, settings)
            found = _write(plain, inputs, written, cases, forward_fn, settings)
            report = ExportReport(
                path=path,
                format=path.suffix[1:],
                opset=opset if path.suffix == ".onnx" else None,
                open_axes=tuple(AXES[axis] for axis in settings.axes),
                **found | {"checks": more or found["checks"]},
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


@dataclass(frozen=True)
class _Settings:
    """What is asked of a file, as of :func:`export`."""

    opset: int
    batch: int | None
    dynamic_size: bool
    runtimes: tuple[Runtime, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        return open_axes(batch=self.batch, dynamic_size=self.dynamic_size)


def _checked_by_more(
    model: nn.Module,
    plain: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    forward_fn: ForwardFunction | None,
    settings: _Settings,
) -> tuple[Check, ...]:
    """Check a file that finds something in noise, where the one that is asked for may find nothing; it is removed.

    Returns:
        Its checks; none where the file itself finds enough, or is not one of things found.
    """
    if not is_unordered(forward_fn):
        return ()
    noise = resized(inputs, batch=settings.batch or 1, seed=1)
    telling: ForwardFunction = forward_fn.telling(model, noise)  # type: ignore[union-attr]
    if telling is forward_fn:
        return ()
    cases = _cases(model, inputs, telling, settings)
    if not all(len(case.expected[0]) for case in cases):
        raise ExportError(
            "the check failed: the model finds nothing in noise, however low the score may be, and there is nothing to "
            "compare; are its weights finite?"
        )
    checks: tuple[Check, ...] = _write(plain, inputs, path, cases, telling, settings)["checks"]
    path.unlink()
    return checks


def _cases(
    model: nn.Module, inputs: tuple[Tensor, ...], forward_fn: ForwardFunction | None, settings: _Settings
) -> list[Case]:
    """Run the model on inputs of two batches, and of a larger size where that stays open."""
    reference = ExportedNetwork(model, forward_fn)
    batches = (1, 3) if settings.batch is None else (settings.batch, settings.batch)
    larger = [(0, 0), (1, 2) if settings.dynamic_size else (0, 0)]
    found = []
    for seed, (count, more) in enumerate(zip(batches, larger, strict=True), start=1):
        example = resized(inputs, batch=count, larger=more, seed=seed)
        try:
            named = reference.named(example)
            expected = tuple(tensor for _, tensor in named)
            again = _found_again(reference, example, expected, seed) if is_unordered(forward_fn) else None
            if again is None:
                reference.check_repeats(example, expected)
            found.append(Case(example, expected, again))
            if again is not None:
                _check_steps(model, example, dict(named), forward_fn, again)
        except ExportError:
            raise
        except Exception as error:
            shape = tuple(example[0].shape)
            raise ExportError(
                f"the model does not run on an input of {shape} ({type(error).__name__}: {error}), which the file "
                f"has to take; give {'no dynamic size' if any(more) else 'the batch it is made for (--batch 1)'}"
            ) from error
    return found


def _check_steps(
    model: nn.Module, example: tuple[Tensor, ...], found: dict[str, Tensor], forward_fn: Any, again: float
) -> None:
    """Compare what steps for a file find with what the model's own steps find.

    Raises:
        ExportError: It is something else, or not finite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise ExportError("the check failed: the model returns values that are not finite")
    own = forward_fn.own_steps(model, example)
    _, same, count = compare_rows(list(own.values()), [found[name] for name in own], tolerance=TOLERANCE)
    check_alike("what replaces the model's own steps", same, count, again=again, shape=tuple(example[0].shape))


def _found_again(
    reference: ExportedNetwork, example: tuple[Tensor, ...], expected: tuple[Tensor, ...], seed: int
) -> float:
    """Return the share of what a model finds that it finds again in inputs changed by rounding."""
    noise = resized(example, batch=len(example[0]), seed=-seed)
    changed = [one * (1 + ROUNDING * other) for one, other in zip(example, noise, strict=True)]
    _, same, count = compare_rows(expected, reference(*changed), tolerance=TOLERANCE)
    return same / count if count else 1.0


def _write(
    plain: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    cases: list[Case],
    forward_fn: ForwardFunction | None,
    settings: _Settings,
) -> dict[str, Any]:
    """Write a file, run all checks, and return what the report says of it.

    Args:
        plain: What is written: a copy of the model, of ordinary layers.
        inputs: Examples.
        path: The file.
        cases: What it is checked by.
        forward_fn: Runs them; None for a plain call.
        settings: Of the file.
    """
    network = ExportedNetwork(plain, forward_fn).eval()
    names = input_names(inputs), network.output_names(inputs)
    # A batch of 1 would be taken for a constant; height and width of one size for one axis.
    larger = (0, 1) if settings.dynamic_size else (0, 0)
    traced = resized(inputs, batch=settings.batch or 2, larger=larger, seed=0)
    program = trace_program(network, traced, axes=settings.axes)
    constants: int | None = None
    if path.suffix == ".onnx":
        write_onnx(program, path, opset=settings.opset, names=names, axes=settings.axes)
        constants, weights = check_initializers(path, network)
        openers: dict[str, Callable[[Path], Runner]] = {
            name: partial(open_file, runtime=name) for name in settings.runtimes
        }
    else:
        torch.export.save(program, path)
        weights = sum(t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()])
        openers = {"torch.export": open_program}
    checks: tuple[Check, ...] = tuple(check_outputs(name, opened, path, cases) for name, opened in openers.items())
    return {
        "inputs": tuple(names[0]),
        "outputs": tuple(names[1]),
        "checks": checks,
        "constant_bytes": constants,
        "weight_bytes": weights,
        "file_bytes": path.stat().st_size,
    }


def _quantized(path: Path, settings: Int8) -> Int8Report:
    target = int8_path(path, settings.runtime)
    quantize(path, target, settings)
    return compare(path, target, settings)
