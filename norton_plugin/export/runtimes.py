"""Running exported files: each runtime as a function from tensors to tensors, on one thread where it can be set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from norton_plugin.export.program import AXES

Runner = Callable[[Sequence[Tensor]], list[Tensor]]
Runtime = Literal["onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")


def open_onnxruntime(path: Path, *, image: Tensor | None = None, threads: int = 1) -> Runner:
    """Open an ONNX file in onnxruntime, on the CPU.

    Args:
        path: The file.
        image: Fix open axes of the one input to this size, as for a measurement of time.
        threads: Of the processor.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # its warnings are about operators that it folds
    if image is not None:
        for axis, name in AXES.items():
            options.add_free_dimension_override_by_name(name, image.shape[axis])
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = session.run(None, {n: tensor.numpy() for n, tensor in zip(names, inputs, strict=True)})
        return [torch.from_numpy(array) for array in found]

    return run


def open_openvino(path: Path, *, image: Tensor | None = None, threads: int = 1) -> Runner:
    """Open an ONNX file or an OpenVINO IR in OpenVINO, on the CPU, at the precision of the file.

    Args:
        path: The file.
        image: As for :func:`open_onnxruntime`.
        threads: Likewise.
    """
    import openvino

    # By default, OpenVINO computes in bfloat16 where the processor can: that is a choice of users, not of a check.
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    model = core.read_model(path)
    if image is not None:
        model.reshape(list(image.shape))
    compiled: Any = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = request.infer([tensor.numpy() for tensor in inputs])
        return [torch.from_numpy(found[port].copy()) for port in compiled.outputs]

    return run


def open_program(path: Path) -> Runner:
    """Open a ``.pt2`` file in PyTorch."""
    module = torch.export.load(path).module()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(module(*inputs))

    return run


def open_file(path: Path, runtime: Runtime, *, image: Tensor | None = None, threads: int = 1) -> Runner:
    """Open a file in one of :data:`RUNTIMES`."""
    opener = open_onnxruntime if runtime == "onnxruntime" else open_openvino
    return opener(path, image=image, threads=threads)
