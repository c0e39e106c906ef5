"""Checks of a file that was just written, against the model it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from norton_plugin.errors import ExportError
from norton_plugin.export.onnx_file import initializer_bytes
from norton_plugin.export.rows import compare_rows
from norton_plugin.export.runtimes import RUNTIMES, Runner

# Largest difference of an output, over its largest value. Runtimes sum in other orders, and use Winograd's algorithm.
TOLERANCE = 1e-3
# Things found, such as boxes, that have to be the same, as a share of those that the model itself finds again in an
# input changed by so much: where weights are not trained, rounding decides on many of them.
ALIKE, ROUNDING = 0.95, 1e-4
_LEAST_ALIKE = 0.05  # of all, even where the model itself finds next to nothing again
# Constants of shapes, masks and anchors come on top of the weights.
_SLACK, _MORE = 2**20, 1.25
# How lines of OpenVINO's errors begin that tell places in its code.
_WHERE = ("Exception from ", "Check '", "FrontEnd API failed ")


@dataclass(frozen=True)
class Case:
    """Inputs, and what the model returns for them.

    Attributes:
        inputs: Positional tensors.
        expected: All tensors of the output.
        again: Where they are rows of things found (``modules.running.is_unordered``), the share of them that the model
            itself finds again in inputs changed by :data:`ROUNDING`; None for any other output.
    """

    inputs: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]
    again: float | None = None


@dataclass(frozen=True)
class Check:
    """One runtime that gives what PyTorch gives.

    Attributes:
        runtime: ``onnxruntime``, ``openvino`` or ``torch.export``.
        shapes: Of the first input, one for each run.
        difference: The largest of an output over its largest value, at most :data:`TOLERANCE`; where things are found,
            of those that are alike.
        alike: How many things found are the same in both, and how many there are; None for any other output.
        again: Share of them that the model itself finds again in inputs changed by :data:`ROUNDING`; None likewise.
    """

    runtime: str
    shapes: tuple[tuple[int, ...], ...]
    difference: float
    alike: tuple[int, int] | None = None
    again: float | None = None


def check_outputs(runtime: str, opened: Callable[[Path], Runner], path: Path, cases: Sequence[Case]) -> Check:
    """Run a file, and compare.

    Args:
        runtime: Its name.
        opened: What opens the file in it.
        path: The file.
        cases: Two or more.

    Raises:
        ExportError: It does not open, does not run, or gives something else.
    """
    shapes = tuple(tuple(case.inputs[0].shape) for case in cases)
    worst, alike = 0.0, (0, 0)
    try:
        run = opened(path)
    except Exception as error:
        others = [each for each in RUNTIMES if each != runtime and runtime in RUNTIMES]
        way = f"; a file for {others[0]} alone: runtimes={others}, --check {others[0]}" if others else ""
        raise ExportError(
            f"the check failed: {runtime} does not open the file ({_telling_line(error, path)}){way}"
        ) from error
    for case, shape in zip(cases, shapes, strict=True):
        try:
            found = run(case.inputs)
        except Exception as error:
            raise ExportError(
                f"the check failed: {runtime} does not run the file on an input of {shape} "
                f"({_telling_line(error, path)}); where the model fixes its batch, give --batch 1"
            ) from error
        if case.again is not None:
            difference, same, count = compare_rows(case.expected, found, tolerance=TOLERANCE)
            check_alike(runtime, same, count, again=case.again, shape=shape)
            alike = alike[0] + same, alike[1] + count
        else:
            difference = _difference(case.expected, found)
        if not difference <= TOLERANCE:  # NaN, too
            raise ExportError(
                f"the check failed: {runtime} differs from PyTorch by {difference:.1e} of the largest output on an "
                f"input of {shape}; expected at most {TOLERANCE:g}"
            )
        worst = max(worst, difference)
    found_again = [case.again for case in cases if case.again is not None]
    return Check(runtime, shapes, worst, *((alike, min(found_again)) if found_again else ()))


def check_alike(who: str, same: int, count: int, *, again: float, shape: tuple[int, ...]) -> None:
    """Refuse too few things that are found alike.

    Args:
        who: Found them.
        same: Alike.
        count: All of them.
        again: Share of them that the model itself finds again after rounding.
        shape: Of the input.

    Raises:
        ExportError: They are too few.
    """
    share = max(ALIKE * again, _LEAST_ALIKE)
    if same < share * count:
        raise ExportError(
            f"the check failed: {who} finds {same} of {count} objects as the model does in PyTorch on an input of "
            f"{shape}; expected at least {share:.0%}; of weights that are not trained, all scores may be equal"
        )


def check_initializers(path: Path, model: nn.Module) -> tuple[int, int]:
    """Compare the constants of an ONNX file with the weights of the lowered model.

    Returns:
        Bytes of the file's constants, and of the model's parameters and buffers.

    Raises:
        ExportError: The file holds more: weights were multiplied out, or stored twice.
    """
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    own = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    found = initializer_bytes(path)
    if found > _MORE * own + _SLACK:
        raise ExportError(
            f"the check failed: the file holds {found:,} bytes of constants, and the lowered model {own:,} of weights"
        )
    return found, own


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest relative difference; infinite where shapes differ."""
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
        return float("inf")
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.numel():
            scale = max(float(one.abs().max()), torch.finfo(torch.float32).tiny)
            worst = max(worst, float((one.double() - other.double()).abs().max()) / scale)
            if not bool(other.isfinite().all()):
                return float("nan") if bool(one.isfinite().all()) else worst
    return worst


def _telling_line(error: Exception, path: Path) -> str:
    """Return the line of an error that says most: OpenVINO first tells where in its code an operator was refused."""
    lines = [line.strip() for line in str(error).replace(str(path), path.name).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_WHERE)] or lines or [""]
    best = next((line for line in telling if line.startswith("Unsupported")), telling[0])
    return f"{type(error).__name__}: {best[:300]}"
