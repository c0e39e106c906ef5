"""What is adjusted on unlabelled images after surgery."""

from norton_plugin.calibration.batch_norm import reestimate_batch_norm_
from norton_plugin.calibration.batches import batch_size, split_batches
from norton_plugin.calibration.calibrate import CalibrationReport, calibrate_, take_batches
from norton_plugin.calibration.divergence import Comparison, divergence, outputs_of
from norton_plugin.calibration.fisher import fisher_weights
from norton_plugin.calibration.fitting import LayerFit
from norton_plugin.calibration.output_criterion import OutputCriterion

__all__ = [
    "CalibrationReport",
    "Comparison",
    "LayerFit",
    "OutputCriterion",
    "batch_size",
    "calibrate_",
    "divergence",
    "fisher_weights",
    "outputs_of",
    "reestimate_batch_norm_",
    "split_batches",
    "take_batches",
]
