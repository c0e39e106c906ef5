"""The main job: a model in, a compressed model and a report out."""

from norton_plugin.pipeline.checks import check_model
from norton_plugin.pipeline.compression import compress
from norton_plugin.pipeline.report import CompressionReport, LayerReport
from norton_plugin.pipeline.result import CompressionResult

__all__ = ["CompressionReport", "CompressionResult", "LayerReport", "check_model", "compress"]
