"""What is adjusted on unlabelled images after surgery."""

from norton_plugin.calibration.batch_norm import reestimate_batch_norm_
from norton_plugin.calibration.calibrate import CalibrationReport, calibrate_, take_batches
from norton_plugin.calibration.fisher import fisher_weights
from norton_plugin.calibration.fitting import LayerFit
from norton_plugin.calibration.output_criterion import OutputCriterion

__all__ = [
    "CalibrationReport",
    "LayerFit",
    "OutputCriterion",
    "calibrate_",
    "fisher_weights",
    "reestimate_batch_norm_",
    "take_batches",
]
