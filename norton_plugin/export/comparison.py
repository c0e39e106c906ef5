"""A quantised file beside the file it came from: size, answers, accuracy and speed in one runtime."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from norton_plugin.deploy.latency import compare_latency
from norton_plugin.errors import ExportError
from norton_plugin.export.int8 import Int8
from norton_plugin.export.processor import int8_instructions
from norton_plugin.export.runtimes import Runner, Runtime, open_file


@dataclass(frozen=True)
class Int8Report:
    """What quantisation changed.

    Attributes:
        path: The quantised file (with OpenVINO the ``.xml``, beside its ``.bin``).
        runtime: That both files ran in.
        fp32_bytes: Size of the file in fp32.
        int8_bytes: Size of the quantised file, or of both of an IR.
        calibration_images: Images that fixed the ranges.
        images: Images on which the two were compared.
        difference: Mean over images of the outputs' distance, relative to the norm of the outputs in fp32.
        agreement: Percent of images with the same top-1; None where the output is not one row of classes.
        fp32_top1: Accuracy in percent; None without labels.
        int8_top1: Accuracy in percent; None without labels.
        fp32_ms: Median milliseconds of processor time for one image, on one thread.
        int8_ms: The same, measured in turns with it.
        speedup: ``fp32_ms / int8_ms``.
        instructions: Of the processor for int8, as of :func:`~norton_plugin.export.processor.int8_instructions`.
    """

    path: Path
    runtime: Runtime
    fp32_bytes: int
    int8_bytes: int
    calibration_images: int
    images: int
    difference: float
    agreement: float | None
    fp32_top1: float | None
    int8_top1: float | None
    fp32_ms: float
    int8_ms: float
    speedup: float
    instructions: str


def compare(fp32: Path, int8: Path, settings: Int8, *, rounds: int = 50, budget: float = 20.0) -> Int8Report:
    """Run both files on the images, and time them in turns.

    Args:
        fp32: An ONNX file.
        int8: Quantised from it.
        settings: Images, labels and runtime.
        rounds: Timed calls of each.
        budget: Seconds after which no further round begins.

    Raises:
        ExportError: The quantised file does not run, or returns values that are not finite.
    """
    try:
        # All images have one size: runtimes plan better for it than for any size.
        before, after = (open_file(path, settings.runtime, image=settings.compared[0]) for path in (fp32, int8))
        answers = [(before([image]), after([image])) for image in settings.compared]
    except Exception as error:
        raise ExportError(
            f"the check failed: {settings.runtime} does not run the quantised file ({type(error).__name__}: {error})"
        ) from error
    differences = [_distance(*pair) for pair in answers]
    if not all(d < float("inf") for d in differences):
        raise ExportError("the check failed: the quantised file returns values that are not finite")
    picks = [(_pick(one), _pick(other)) for one, other in answers]
    is_classifier = all(one is not None for one, _ in picks)
    labels = settings.labels if is_classifier else None
    seconds = _timed(before, after, settings.compared[0], rounds=rounds, budget=budget)
    files = [int8, *([int8.with_suffix(".bin")] if int8.suffix == ".xml" else [])]
    return Int8Report(
        path=int8,
        runtime=settings.runtime,
        fp32_bytes=fp32.stat().st_size,
        int8_bytes=sum(file.stat().st_size for file in files),
        calibration_images=len(settings.calibration),
        images=len(answers),
        difference=sum(differences) / len(differences),
        agreement=_percent([one == other for one, other in picks]) if is_classifier else None,
        fp32_top1=_percent([p[0] == y for p, y in zip(picks, labels, strict=True)]) if labels is not None else None,
        int8_top1=_percent([p[1] == y for p, y in zip(picks, labels, strict=True)]) if labels is not None else None,
        fp32_ms=1e3 * seconds[0],
        int8_ms=1e3 * seconds[1],
        speedup=seconds[0] / seconds[1],
        instructions=int8_instructions(),
    )


def _timed(before: Runner, after: Runner, image: Tensor, *, rounds: int, budget: float) -> tuple[float, ...]:
    # Each call is made twice, and the second counts: none pays for what the other one left in the caches.
    calls = [partial(run, [image]) for run in (before, before, after, after)]
    found = compare_latency(calls, rounds=rounds, warmup=3, budget=budget, clock=time.process_time)
    return found.seconds[1::2]


def _distance(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the distance of all outputs together, relative to the norm of the first."""
    one, other = (torch.cat([tensor.flatten().double() for tensor in outputs]) for outputs in (expected, found))
    norm = float(one.norm())
    return float((one - other).norm()) / norm if norm else float((one - other).norm())


def _pick(outputs: Sequence[Tensor]) -> int | None:
    """Return the class with the largest score; None where there is no single row of scores."""
    if len(outputs) != 1 or outputs[0].dim() != 2 or len(outputs[0]) != 1 or outputs[0].shape[1] < 2:
        return None
    return int(outputs[0].argmax())


def _percent(right: list[bool]) -> float:
    return 100.0 * sum(right) / len(right)
