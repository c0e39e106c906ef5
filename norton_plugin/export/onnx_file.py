"""Writing a traced model as ONNX."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from norton_plugin.errors import ExportError
from norton_plugin.export.program import AXES
from norton_plugin.export.refusal import quiet, refused_conversion

DEFAULT_OPSET = 18  # what torch's exporter is written for; others are converted from it


def check_opset(opset: int) -> None:
    """Refuse an opset that ONNX does not have.

    Raises:
        ExportError: It is unknown here.
    """
    from onnx.defs import onnx_opset_version

    if not 1 <= opset <= onnx_opset_version():
        raise ExportError(
            f"opset {opset} is unknown: the onnx installed here has 1 to {onnx_opset_version()}; "
            f"{DEFAULT_OPSET} is the one that most runtimes read"
        )


def write_onnx(
    program: ExportedProgram, path: Path, *, opset: int, names: tuple[list[str], list[str]], axes: tuple[int, ...]
) -> None:
    """Convert a program and write it into one file.

    Args:
        program: Of a network.
        path: The file.
        opset: Version of the operators.
        names: Of inputs and of outputs.
        axes: Those that stay open, which get names.

    Raises:
        ExportError: An operation cannot be written as ONNX, or not in this opset.
    """
    import onnx

    with quiet(), torch.no_grad():
        try:
            written = torch.onnx.export(
                program, dynamo=True, opset_version=opset, input_names=names[0], output_names=names[1], verbose=False
            )
            proto = written.model_proto  # type: ignore[union-attr]
        except Exception as error:
            raise refused_conversion(error, program) from error
    found = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if found != opset:
        raise ExportError(
            f"opset {opset} was asked for, and the exporter could bring this model to opset {found} only; give "
            f"--opset {found}, or another one"
        )
    _name_axes_(proto, axes)
    onnx.save(proto, path)


def _name_axes_(proto: Any, axes: tuple[int, ...]) -> None:
    """Call open axes by their names, in place of the tracer's symbols."""
    names: dict[str, str] = {}
    for value in proto.graph.input:
        sizes = value.type.tensor_type.shape.dim
        for axis in axes:
            if sizes[axis].dim_param:
                names.setdefault(sizes[axis].dim_param, AXES[axis])
    if not names:
        return
    symbols = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = symbols.sub(lambda found: names[found[0]], size.dim_param)


def initializer_bytes(path: Path) -> int:
    """Return what the constants of a file's graph take."""
    import onnx

    graph = onnx.load(path).graph
    inner = (tensor for node in graph.node if node.op_type == "Constant" for tensor in (a.t for a in node.attribute))
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in [*graph.initializer, *inner])
