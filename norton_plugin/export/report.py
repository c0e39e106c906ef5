"""What is known of a file that was written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from norton_plugin.export.checks import Check
from norton_plugin.export.comparison import Int8Report


@dataclass(frozen=True)
class ExportReport:
    """A file that computes what the model does.

    Attributes:
        path: The file.
        format: ``onnx`` or ``pt2``.
        opset: Of ONNX, None for others.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        open_axes: Axes of the inputs that may have any size: ``batch``, ``height``, ``width``.
        file_bytes: Size of the file.
        constant_bytes: What the constants in the ONNX graph take; None for others.
        weight_bytes: What parameters and buffers of the lowered model take.
        checks: One for each runtime that ran the file.
        seconds: Of the whole job.
        int8: What became of the quantised file, where one was asked for.
    """

    path: Path
    format: str
    opset: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    open_axes: tuple[str, ...]
    file_bytes: int
    constant_bytes: int | None
    weight_bytes: int
    checks: tuple[Check, ...]
    seconds: float
    int8: Int8Report | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-able."""
        found = asdict(self)
        found["path"] = str(self.path)
        if self.int8 is not None:
            found["int8"]["path"] = str(self.int8.path)
        return found
