"""The main job: a model in, a compressed model and a report out."""

from norton_plugin.pipeline.checks import check_model
from norton_plugin.pipeline.compression import compress
from norton_plugin.pipeline.report import CompressionReport, LayerReport
from norton_plugin.pipeline.result import CompressionResult
from norton_plugin.pipeline.step_log import StepLog
from norton_plugin.pipeline.wording import (
    LEVEL_HEADINGS,
    budget_in_words,
    calibration_in_words,
    distillation_in_words,
    in_words,
    level_cells,
    note_on_distances,
    size_in_words,
)

__all__ = [
    "LEVEL_HEADINGS",
    "CompressionReport",
    "CompressionResult",
    "LayerReport",
    "StepLog",
    "budget_in_words",
    "calibration_in_words",
    "distillation_in_words",
    "check_model",
    "compress",
    "in_words",
    "level_cells",
    "note_on_distances",
    "size_in_words",
]
