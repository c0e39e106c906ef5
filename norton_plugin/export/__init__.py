"""Files for other runtimes: ONNX, ``torch.export`` programs, and int8 of them, each checked before it is there."""

from norton_plugin.export.checks import TOLERANCE, Check
from norton_plugin.export.comparison import Int8Report
from norton_plugin.export.int8 import Int8, check_quantisable
from norton_plugin.export.onnx_file import DEFAULT_OPSET
from norton_plugin.export.report import ExportReport
from norton_plugin.export.runtimes import RUNTIMES, Runtime
from norton_plugin.export.writing import SUFFIXES, export

__all__ = [
    "DEFAULT_OPSET",
    "RUNTIMES",
    "SUFFIXES",
    "TOLERANCE",
    "Check",
    "ExportReport",
    "Int8",
    "Int8Report",
    "Runtime",
    "check_quantisable",
    "export",
]
